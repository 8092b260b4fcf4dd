"""Times every provider of an operator in one process, interleaved, after the gate: no number while a result is wrong.

    python -m benchmarks.run [--op segment_stats] [--model ViT-B-32] [--device cuda] [--repeats 9] [--threads N] [--out rows.csv]

Share is the bandwidth reached, relative to a plain torch.sum measured in the same rounds; on a GPU a plain copy runs beside it.
A time ends when the device has finished. Rows of the CSV carry device, torch,
version and commit; existing files are appended to.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.registry import BENCHMARKS, Case, Model, Provider
from razor_fast import __version__, _register

PLAIN_SUM, PLAIN_COPY = "plain_sum", "plain_copy"  # what bandwidth is measured by


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str:
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def check(case: Case) -> dict[str, str]:
    """Provider -> what its gate found wrong; each runs once, which also warms it up."""
    wrong = {}
    for name, provider in case.providers.items():
        reason = provider.gate(provider.run())
        if reason is not None:
            wrong[name] = reason
    return wrong


def measure(case: Case, repeats: int, elements: int, device: torch.device) -> dict[str, list[float]]:
    """Provider -> seconds, one per round; a plain sum of `elements` random values, on a GPU a copy too, runs in every round."""
    buffer = torch.randn(elements).to(device)
    providers = {PLAIN_SUM: Provider(buffer.sum, lambda found: None, 4 * elements), **case.providers}
    if device.type == "cuda":
        other = torch.empty_like(buffer)
        providers[PLAIN_COPY] = Provider(lambda: other.copy_(buffer), lambda found: None, 8 * elements)
    times: dict[str, list[float]] = {name: [] for name in providers}
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    buffer.sum()
    for i in range(repeats):
        for name, provider in providers.items():
            if provider.rounds is not None and i >= provider.rounds:
                continue
            wait()
            begin = time.perf_counter()
            provider.run()
            wait()
            times[name].append(time.perf_counter() - begin)
    return times


def rows(op: str, model: Model, case: Case, times: dict[str, list[float]]) -> list[dict]:
    def quantiles(name):
        values = sorted(times[name])
        cut = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
        return statistics.median(values), cut[1], cut[7]

    on = model.device.type
    device = processor() if on == "cpu" else torch.cuda.get_device_name(model.device)
    of_plain = {PLAIN_SUM: 4 * model.elements, PLAIN_COPY: 8 * model.elements}
    bandwidth_of_sum = of_plain[PLAIN_SUM] / quantiles(PLAIN_SUM)[0]
    out = []
    for name in times:
        median, p20, p80 = quantiles(name)
        moved = of_plain.get(name) or case.providers[name].bytes_moved
        baseline = case.baselines.get(name)
        out.append({
            "op": op, "model": model.name, "case": case.name, "provider": name,
            "owner": _register.owner(op, on)[0] if name.startswith("razor_fast") else "",
            "median_ms": round(1e3 * median, 3), "p20_ms": round(1e3 * p20, 3), "p80_ms": round(1e3 * p80, 3),
            "minimum_ms": round(1e3 * min(times[name]), 3), "gb_per_s": round(moved / median / 1e9, 2),
            "share_of_plain_sum": round(moved / median / bandwidth_of_sum, 3), "baseline": baseline or "",
            "speedup": round(quantiles(baseline)[0] / median, 2) if baseline else "",
            "repeats": len(times[name]), "threads": torch.get_num_threads(), "device": device,
            "torch": torch.__version__, "version": __version__, "commit": commit(),
            "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        })
    return out


def show(table_rows: list[dict]) -> None:
    first = table_rows[0]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:  # on a machine where nothing can be installed
        for row in table_rows:
            print(*(f"{key}={row[key]}" for key in ("op", "provider", "owner", "median_ms", "p20_ms", "p80_ms", "gb_per_s",
                                                    "share_of_plain_sum", "speedup", "baseline")))
        return
    table = Table(title=f"{first['op']}, {first['model']}, {first['case']}, {first['threads']} threads")
    for title in ("provider", "median ms", "p20", "p80", "GB/s", "share of a plain sum", "speed-up", "against"):
        table.add_column(title, justify="left" if title in ("provider", "against") else "right")
    for row in table_rows:
        table.add_row(*(str(row[key]) for key in ("provider", "median_ms", "p20_ms", "p80_ms", "gb_per_s",
                                                  "share_of_plain_sum", "speedup", "baseline")))
    Console(width=140).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=sorted(BENCHMARKS), action="append", help="default: all")
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip model name; only its shapes are used")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--out", type=Path, help="CSV to append to")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    model = Model(options.model, options.device)
    failed = False
    for op in options.op or BENCHMARKS:
        case = BENCHMARKS[op](model)
        wrong = check(case)
        if wrong:
            failed = True
            print(f"{op} is not timed: " + "; ".join(f"{name}: {reason}" for name, reason in wrong.items()), file=sys.stderr)
            continue
        found = rows(op, model, case, measure(case, options.repeats, model.elements, model.device))
        show(found)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            new = not options.out.exists() or options.out.stat().st_size == 0
            with options.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(found[0]))
                if new:
                    writer.writeheader()
                writer.writerows(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
