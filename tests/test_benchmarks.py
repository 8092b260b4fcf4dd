"""The benchmark runner works: gate, timing, rows. What the numbers are is for `make bench` on a quiet machine."""

import csv
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_run_times_every_provider_after_the_gate(tmp_path):
    out = tmp_path / "rows.csv"
    command = [sys.executable, "-m", "benchmarks.run", "--op", "segment_update_", "--model", "ViT-S-32", "--repeats", "2",
               "--threads", "1", "--out", str(out)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(out, newline="") as file:
        rows = {row["provider"]: row for row in csv.DictReader(file)}
    ours = [row for name, row in rows.items() if name.startswith("razor_fast")]
    assert ours and len(rows) > len(ours)
    for row in rows.values():
        assert 0 < float(row["p20_ms"]) <= float(row["median_ms"]) <= float(row["p80_ms"])
        assert row["device"] and row["torch"] and row["commit"]


def test_the_quality_benchmark_explains_itself():
    command = [sys.executable, "-m", "benchmarks.quality.demo_clip", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "retrieval stability at least 98" in done.stdout
