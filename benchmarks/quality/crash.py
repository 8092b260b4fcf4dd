"""kill -9 at random moments of a demo run: each resume must end in the byte-identical edit.

    python -m benchmarks.quality.crash [--kills 50] [--seed 0] [--cache runs/demo-weights]

An uninterrupted run of the CLIP demo's edit gives the reference, and the time it takes. Then each of `kills` runs is killed once,
at a moment drawn evenly from that time, and resumed in the same folder until it ends. Exits with 1 when an edit differs, or when
more than half of the kills came too late to hit anything.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from razor_fast.config import RazorConfig
from razor_fast.demo.clip import demo_task
from razor_fast.methods import unlearn

FILES = ("edit.safetensors", "edit.undo.safetensors")


def start(folder: Path, given) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.quality.crash", "--child", str(folder), "--cache", str(given.cache)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> None:
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(error.decode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--cache", type=Path, default=Path("runs/demo-weights"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        # several rounds, so that there is something to resume: the target cannot be met
        config = RazorConfig(forget_target=-1.0, max_rounds=3, extra_rounds=0, inner_steps=3, max_probes=4)
        unlearn(demo_task(cache=given.cache), config, run_directory=given.child)
        return 0
    draw, base = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="razor-crash-"))
    try:
        began = time.perf_counter()
        finish(start(base / "whole", given))
        length = time.perf_counter() - began
        wanted = [(base / "whole" / name).read_bytes() for name in FILES]
        different, missed, resumed = 0, 0, 0
        for number in range(given.kills):
            folder = base / f"killed-{number}"
            process = start(folder, given)
            time.sleep(draw.uniform(0, length))
            missed += process.poll() is not None
            process.send_signal(signal.SIGKILL)
            process.communicate()
            resumed += (folder / "state.safetensors").exists()
            finish(start(folder, given))
            different += [(folder / name).read_bytes() for name in FILES] != wanted
            shutil.rmtree(folder)
            print(f"{number + 1} killed: {resumed} had a state, {missed} had ended, {different} differ", flush=True)
    finally:
        shutil.rmtree(base)
    return int(bool(different) or missed > given.kills / 2)


if __name__ == "__main__":
    sys.exit(main())
