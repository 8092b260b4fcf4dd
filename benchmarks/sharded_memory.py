"""Peak memory of a rank in a scoring pass under FSDP2, as a share of the whole model's: bar 1 / ranks + 0.15.

    python -m benchmarks.sharded_memory                 # 1, 2 and 4 processes, 0.3 B parameters in fp32
    python -m benchmarks.sharded_memory --layers 4      # smaller, to try

Each rank's peak resident memory above what it held before the model was made: parameters, both gradients, gathered blocks,
activations and gloo's buffers. The model is built and sharded block by block, so that no rank ever holds it whole. Also the
seconds of the passes and of the scoring call, and the bytes that it sends: what docs/scale.md holds its cost model against.
The allocator is told to return what is freed (MALLOC_MMAP_THRESHOLD_), or resident memory would count what nobody holds.
"""

import argparse
import os
import sys
import tempfile
import time

BAR = 0.15


def rank_main(rank, size, store, options, results):
    import threading

    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    import razor_fast as rf

    torch.set_num_threads(1)
    page, peak, stop = os.sysconf("SC_PAGE_SIZE"), [0], threading.Event()

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * page

    def watch():
        while not stop.wait(0.01):
            peak[0] = max(peak[0], resident())

    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
        mesh = init_device_mesh("cpu", (size,))
    before = resident()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList()
    for _ in range(options.layers):
        block = torch.nn.TransformerEncoderLayer(
            options.width, options.width // 64, 4 * options.width, dropout=0.0, batch_first=True
        )
        blocks.append(fully_shard(block, mesh=mesh, reshard_after_forward=True) if size > 1 else block)
    model = torch.nn.Module()
    model.blocks = blocks

    def forward(batch):
        for block in model.blocks:
            batch = torch.utils.checkpoint.checkpoint(block, batch, use_reentrant=False)
        return batch

    units = rf.find_units(model)
    batch = torch.randn(2, 16, options.width)
    began = time.perf_counter()
    with rf.ScoreRecorder(model, units) as recorder:
        for side, loss in (("retain", lambda x: x.square().mean()), ("forget", lambda x: x.abs().mean())):
            with getattr(recorder, side)():
                loss(forward(batch)).backward()
        passes = time.perf_counter() - began
        recorder.scores()  # the first: the ranks agree on their layout, the plan is compiled
        began = time.perf_counter()
        scores = recorder.scores()
        call = time.perf_counter() - began
    stop.set()
    watcher.join()
    elements = sum(p.numel() for p in units.parameters.values())
    results.put((rank, peak[0] - before, passes, call, elements, len(units), scores.sums.sum(0).tolist()))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def measure(size, options):
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = context.Queue()
        arguments = (size, f"{folder}/store", options, results)
        processes = [context.Process(target=rank_main, args=(rank, *arguments)) for rank in range(size)]
        for process in processes:
            process.start()
        found = sorted(results.get(timeout=900) for _ in processes)
        for process in processes:
            process.join()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)  # read by the processes that are spawned
    whole, met = None, True
    for size in options.ranks:
        found = measure(size, options)
        peak = max(row[1] for row in found)
        whole = peak if whole is None else whole
        share, bar = peak / whole, 1 / size + BAR
        met &= size == 1 or share <= bar
        _, _, passes, call, elements, units, sums = found[0]
        missed = "" if size == 1 or share <= bar else ", missed"
        print(
            f"{size} ranks, {elements / 1e9:.2f} B parameters: peak {peak / 1e9:.2f} GB a rank, {share:.3f} of one process "
            f"(bar {bar:.3f}{missed}); both passes {passes:.1f} s, a scoring call {call * 1e3:.0f} ms, {32 * units} bytes; "
            f"|theta|^2 {sums[0]:.6e}",
            flush=True,
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
