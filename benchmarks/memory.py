"""What a whole scoring pass takes: peak bytes above model and data, and time, in every mode and the ancestors' way.

    python -m benchmarks.memory [--model ViT-B-32]... [--device cuda] [--repeats 3] [--out benchmarks/results]

Real sizes, random weights, batch 4, activation checkpointing in all ways alike, all parameters scored. In one process the ways
take turns and are timed; then each is run in a process of its own for its peak:
 - `peak`: of the allocator's own record. On a CPU every allocation and release of torch's allocator, temporaries of kernels
   included, as torch.profiler logs them; on a GPU torch.cuda.max_memory_allocated. Bars are held against this.
 - `resident`: growth of the kernel's high-water mark of resident memory (VmHWM) over the pass, a cross-check that counts pages.
 - `estimate`: what recording/estimate.py says beforehand, on fake tensors.
The gate: no figure of a mode unless its sums equal those of buffers to 1e-4 in norm. Exit status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.habits import gradients as habit
from benchmarks.habits import slug
from benchmarks.timing import commit, device_name
from razor_fast import __version__, losses
from razor_fast.matrix import matrix_shape
from razor_fast.recorder import MODES
from razor_fast.recording.estimate import dry_run
from razor_fast.recording.running import run
from razor_fast.units import DEFAULT_EXCLUDE, Slice, Unit, Units, find_units

WAYS = ("ancestors", *MODES)
COLUMNS = ("model", "way", "parameter_bytes", "peak", "resident", "estimate", "in_flight_share", "median_s", "fastest_s",
           "repeats", "batch", "dtype", "device", "torch", "version", "commit", "when")  # fmt: skip
MODELS = {"cpu": ("ViT-B-32", "ViT-L-14"), "cuda": ("ViT-B-32", "ViT-L-14", "LLaVA-NeXT-8B")}


@dataclass
class Pass:
    """A model and the two losses of a pass over it; units None: the ancestors' way."""

    model: nn.Module
    units: Units
    forget: object
    retain: object

    def ancestors(self):
        sides = [habit.gradients(self.model, [loss()]) for loss in (self.forget, self.retain)]
        self.model.zero_grad()
        both = sides[0].keys() & sides[1].keys()
        theta = {name: p.detach() for name, p in self.model.named_parameters() if name in both}
        return slug.score_layers(theta, *sides)

    def in_mode(self, mode):
        """(sums, the most bytes of gradients that were held)."""
        recording = MODES[mode](self.model, self.units, **options(mode))
        sums = run(recording, self.forget, self.retain)
        return sums, recording.gradient_bytes()

    def run(self, way):
        return self.ancestors() if way == "ancestors" else self.in_mode(way)

    @property
    def bytes(self):
        return sum(p.numel() * p.element_size() for p in self.units.parameters.values())


def options(mode):
    return {} if mode == "lockstep" else {"freeze_others": True}


def units_of(model, **choice):
    """find_units; of a model on the meta device, whose weights nobody can edit, every parameter as a layer."""
    parameters = dict(model.named_parameters())
    if not any(p.is_meta for p in parameters.values()):
        return find_units(model, **choice)
    names = [n for n in parameters if choice.get("exclude") == () or not any(fnmatchcase(n, e) for e in DEFAULT_EXCLUDE)]
    shapes = {n: matrix_shape(parameters[n].shape) for n in names}
    return Units([Unit(n, "layer", (Slice(n, 0, r, 0, c),)) for n, (r, c) in shapes.items()], parameters)


def clip(name, device):
    import open_clip

    model = open_clip.create_model(name, device=device)  # no tag: random weights, no download
    model.set_grad_checkpointing(True)
    size, length = model.visual.image_size[0], model.context_length
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(2):
        tokens = torch.randint(1, model.vocab_size - 2, (4, length), generator=generator)
        tokens[:, -1] = model.vocab_size - 1
        batches.append((torch.randn(4, 3, size, size, generator=generator), tokens))
    if torch.device(device).type != "meta":
        batches = [tuple(t.to(device) for t in batch) for batch in batches]

    def features(side):
        images, tokens = batches[side]
        return [F.normalize(f, dim=-1) for f in (model.encode_image(images), model.encode_text(tokens))]

    return Pass(
        model, units_of(model, exclude=()), lambda: losses.cosine_embedding_loss(*features(0)),
        lambda: losses.info_nce(*features(1), model.logit_scale.exp()),
    )  # fmt: skip


def llava(name, device):
    """LLaVA-NeXT of Llama-3-8B's size, or with LLaVA-1.5-7B's language model, in bf16: 1 x 1024 tokens a half, image tokens among
    them left to the language model."""
    import transformers

    size = {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128320}
    if name == "LLaVA-1.5-7B":
        size = {"intermediate_size": 11008, "num_key_value_heads": 32, "vocab_size": 32064}

    text = transformers.LlamaConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=8192, rope_theta=5e5, **size,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14,
        projection_dim=768,
    )  # fmt: skip
    config = transformers.LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=size["vocab_size"] - 64, tie_word_embeddings=False
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = transformers.LlavaNextForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()  # transformers checkpoints in training mode alone; the configuration has no dropout
    generator = torch.Generator().manual_seed(0)
    language, head = model.model.language_model, model.lm_head
    batches = [torch.randint(0, size["vocab_size"] - 320, (1, 1025), generator=generator) for _ in range(2)]
    if torch.device(device).type != "meta":
        batches = [ids.to(device) for ids in batches]

    def loss(ids):
        hidden = language(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
        return losses.linear_cross_entropy(hidden.flatten(0, 1), head.weight, ids[:, 1:].flatten()).mean()

    return Pass(model, units_of(model), lambda: loss(batches[0]), lambda: loss(batches[1]))


def build(name, device):
    torch.manual_seed(0)
    return (llava if name.startswith("LLaVA") else clip)(name, device)


def allocator_peak(work, device):
    """The most bytes of tensors and temporaries that were alive during work(), above what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def resident_peak(work):
    """Growth of VmHWM over work(), after what the C library holds free was given back; None where the kernel has no such mark."""
    def status(field):
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1))

    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    work()
    return status("VmHWM") - before


def worker(name, way, device):
    """Peaks of one way, in this process. The first run warms up what is made once."""
    scoring = build(name, device)
    scoring.run(way)
    row = {"parameter_bytes": scoring.bytes, "dtype": str(next(scoring.model.parameters()).dtype).removeprefix("torch.")}
    if device.type == "cpu":
        row["resident"] = resident_peak(lambda: scoring.run(way))
    row["peak"] = allocator_peak(lambda: scoring.run(way), device)
    if way != "ancestors":
        row["in_flight_share"] = round(scoring.in_mode(way)[1] / scoring.bytes, 4)
        row["estimate"] = dry_run(scoring.model, scoring.units, scoring.forget, scoring.retain, way, **options(way))
    return row


def timed(name, ways, device, repeats):
    """way -> seconds of each round, the ways taking turns; gated by the sums of all modes."""
    scoring = build(name, device)
    reference = None
    for mode in (way for way in ways if way != "ancestors"):
        sums = scoring.in_mode(mode)[0]
        reference = sums if reference is None else reference
        worst = ((sums[:, :3].sqrt() - reference[:, :3].sqrt()).abs() / reference[:, :3].sqrt().clamp_min(1e-6)).max().item()
        if worst > 1e-4:
            raise RuntimeError(f"not timed: mode {mode} is off by {worst:.1e}")
    found = {way: [] for way in ways}
    for _ in range(repeats):
        for way in ways:
            begin = time.perf_counter()
            scoring.run(way)
            if device.type == "cuda":
                torch.cuda.synchronize()
            found[way].append(time.perf_counter() - begin)
    return found


def bars(rows):
    """(what, figure, bound, whether it holds) of one model; every figure is at most its bound."""
    by = {row["way"]: row for row in rows}
    model = rows[0]["model"]
    asked = []
    base = by.get("ancestors")
    if base:
        share = {"ViT-B-32": 1 / 7, "ViT-L-14": 1 / 9}
        for way, bound in (("lockstep", share.get(model)), ("stream", 1 / 2.5)):
            if way in by and bound:
                asked.append((f"{way}, peak against the ancestors'", by[way]["peak"] / base["peak"], bound))
            if way in by and by[way].get("median_s") and base.get("median_s"):
                asked.append((f"{way}, time against the ancestors'", by[way]["median_s"] / base["median_s"], 1.0))
    if "lockstep" in by:
        asked.append(("lockstep, in flight of one gradient", by["lockstep"]["in_flight_share"], 0.05))
    for way in MODES:
        if way in by:
            asked.append((f"{way}, estimate off by", abs(by[way]["estimate"] / by[way]["peak"] - 1), 0.15))
    if model.startswith("LLaVA") and "lockstep" in by:
        asked.append(("lockstep, GB with the weights", (by["lockstep"]["peak"] + by["lockstep"]["parameter_bytes"]) / 1e9, 24.0))
    return [(what, figure, bound, figure <= bound) for what, figure, bound in asked]


def write(folder, rows):
    """FOLDER/<device>/memory/<version>.csv. A way that stands there keeps what these rows do not say (times, or peaks)."""
    slug_name = re.sub(r"[^a-z0-9]+", "-", rows[0]["device"].lower()).strip("-")
    path = folder / slug_name / "memory" / f"{__version__}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {}
    if path.exists():
        with path.open(newline="") as file:
            kept = {(row["model"], row["way"]): row for row in csv.DictReader(file)}
    for row in rows:
        key = row["model"], row["way"]
        kept[key] = kept.get(key, {}) | {column: value for column, value in row.items() if value != ""}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(kept.values())
    return path


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--model", action="append", choices=MODELS["cuda"], help="default: all of the device")
    parser.add_argument("--way", action="append", choices=WAYS, help="default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of timing; 0 measures memory alone")
    parser.add_argument("--no-peaks", action="store_true", help="time alone")
    parser.add_argument("--out", type=Path, help="folder to write results to; default: none are kept")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    device = torch.device(given.device)
    if given.worker:
        print(json.dumps(worker(given.model[0], given.way[0], device)))
        return 0
    failed = False
    for name in given.model or MODELS[given.device]:
        ways = [way for way in WAYS if way in (given.way or WAYS)]
        if name.startswith("LLaVA"):
            ways = [way for way in ways if way == "lockstep"]
        times = timed(name, ways, device, given.repeats) if given.repeats else {}
        rows = []
        for way in ways:
            row = dict.fromkeys(COLUMNS, "") | {
                "model": name, "way": way, "batch": 1 if name.startswith("LLaVA") else 4, "device": device_name(device),
                "torch": torch.__version__, "version": __version__, "commit": commit(),
                "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            }  # fmt: skip
            if times:
                row |= {"median_s": round(statistics.median(times[way]), 3), "fastest_s": round(min(times[way]), 3),
                        "repeats": given.repeats}  # fmt: skip
            if not given.no_peaks:
                command = [sys.executable, "-m", "benchmarks.memory", "--worker", "--model", name, "--way", way, "--device",
                           given.device]  # fmt: skip
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True,
                                      env={**os.environ, "PYTHONWARNINGS": "ignore"})  # fmt: skip
                row |= json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            print({key: value for key, value in row.items() if value != "" and key in COLUMNS[:10]}, flush=True)
        if given.out:
            print("written to", write(given.out, rows))
        if not given.no_peaks:
            for what, figure, bound, holds in bars(rows):
                failed |= not holds
                print(f"{'met' if holds else 'missed':>7}: {name}: {what}: {figure:.4g} (at most {bound:.4g})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
