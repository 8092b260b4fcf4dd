"""The sweep of RAZOR's settings: one parameter at a time, and nothing twice."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import pytest  # noqa: E402
from toy import ToyTask, model_bytes  # noqa: E402

from benchmarks.quality import sweep  # noqa: E402
from razor_fast.config import RazorConfig  # noqa: E402


def test_one_parameter_at_a_time_and_nothing_twice(tmp_path, monkeypatch):
    task, made = ToyTask(), []
    before = model_bytes(task.model)

    def make(forget, seed, cache):
        made.append(forget)
        return task, RazorConfig(seed=seed, max_rounds=2, retain_tolerance=0.2)

    monkeypatch.setitem(sweep.TASKS, "clip", make)
    given = argparse.Namespace(parameters=["alpha", "rho"], out=tmp_path / "sweep.csv", cache=tmp_path)
    sweep.sweep("clip", "seven", 0, given, rows := [])
    assert [(row["parameter"], float(row["value"])) for row in rows] == [
        (name, value) for name in ("alpha", "rho") for value in sweep.VARIED[name]
    ]
    assert all(0 <= float(row["loss"]) <= 3 and row["outcome"] for row in rows) and model_bytes(task.model) == before
    kept = sweep.read(given.out)
    assert kept == rows
    given.parameters.append("initial_units")
    sweep.sweep("clip", "seven", 0, given, kept)
    assert len(kept) == len(rows) + len(sweep.VARIED["initial_units"]) and made == ["seven", "seven"]
    sweep.sweep("clip", "seven", 0, given, kept)
    assert len(made) == 2
    same = [row["loss"] for row in kept if (row["parameter"], row["value"]) in (("alpha", "1.0"), ("rho", "1.0"))]
    assert len(same) == 2 and same[0] == same[1]


def rows_of(task="clip", **losses):
    return [
        {"task": task, "forget": "seven", "seed": "0", "parameter": name, "value": str(value), "loss": str(loss)}
        for name, pairs in losses.items()
        for value, loss in pairs.items()
    ]


def test_the_section_names_the_best_value_and_the_default():
    pytest.importorskip("matplotlib")
    from benchmarks.quality.sensitivity import sensitivity, sweep_section

    rows = rows_of(alpha={0.0: 0.2, 0.5: 0.1, 1.0: 0.3}, rho={0.5: 0.2, 1.0: 0.2})
    lines = sweep_section(rows)
    assert "| clip | alpha | 1 | 0.300 | 0.5 | 0.100 |" in lines and "| clip | rho | 1 | 0.200 | 1 | 0.200 |" in lines
    drawn = [axes.get_title() for axes in sensitivity(rows).axes if axes.get_visible()]
    assert drawn == ["alpha", "rho"]
