"""From a YAML file to an edit of a vision-language checkpoint, through the command line."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))
transformers = pytest.importorskip("transformers")

import vlms  # noqa: E402

from razor_fast.cli import app  # noqa: E402
from razor_fast.cli.building_vlm import build_parts, build_task  # noqa: E402
from razor_fast.errors import ConfigError  # noqa: E402
from razor_fast.families.vlm_memory import estimate_memory, peak_memory  # noqa: E402
from razor_fast.run_config import load_run_config  # noqa: E402

YAML = """\
family: vlm
model: {folder: model, device: cpu}
concept: red
data: {forget: forget.jsonl, retain: retain.jsonl, neutral: neutral.jsonl, fractions: [0.5, 0.25, 0.25]}
evaluation: {max_new_tokens: 4}
task: {gradient_batches: 2}
razor: {max_rounds: 3, retain_tolerance: 0.2, inner_steps: 4}
output: runs/red
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    vlms.write_questions(folder)
    model, processor, _ = vlms.learned()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "run.yaml").write_text(YAML)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_unlearn_apply_and_ask_again(folder, tmp_path):
    done = run("unlearn", folder / "run.yaml", "-o", tmp_path / "run")
    assert done.exit_code == 0, done.stderr + repr(done.exception)
    assert "memory, estimated: weights" in done.stderr and "memory, measured:" in done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["outcome"] == "target_met"
    assert all(unit["name"].startswith("model.vision_tower.") for unit in result["edit"]["units"])
    assert "Questions and answers" in (tmp_path / "run" / "report.html").read_text()
    merged = tmp_path / "merged"
    done = run("apply", tmp_path / "run" / "edit.safetensors", folder / "model", "-o", merged)
    assert done.exit_code == 0, done.stderr + repr(done.exception)
    config = load_run_config(folder / "run.yaml", [f"model.folder={merged}"])
    found = build_task(config, build_parts(config)).evaluate("test")
    assert found["forget_accuracy"] == result["metrics"]["test"]["after"]["forget_accuracy"] < 1


def test_score_looks_at_the_editable_part_only(folder, tmp_path):
    table = tmp_path / "scores.csv"
    done = run("score", folder / "run.yaml", "--csv", table, "--set", "task.editable=[projector]")
    assert done.exit_code == 0, done.stderr + repr(done.exception)
    names = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    assert names and all("multi_modal_projector" in name for name in names)


@pytest.mark.parametrize(
    "change, message",
    [
        ("model.folder=nowhere", "no such folder"),
        ("data.forget=nowhere.jsonl", "no such file"),
        ("task.editable=[tower]", "task.editable"),
        ("task.retain=captions", "model.text_tower"),
        ("data.neutral={train: a.jsonl}", "validation and test missing"),
        ("model.device_map=auto", "either device or device_map"),
        ("evaluation.match=fuzzy", "evaluation.match"),
    ],
)
def test_mistakes_are_named(folder, tmp_path, change, message):
    done = run("unlearn", folder / "run.yaml", "-o", tmp_path / "run", "--set", change)
    assert done.exit_code == 2 and message in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_the_three_parts_of_a_side(folder, tmp_path):
    sides = {}
    for side in ("forget", "retain", "neutral"):
        lines = (folder / f"{side}.jsonl").read_text().splitlines(keepends=True)
        groups = {"train": [], "validation": [], "test": []}
        for line in lines:
            number = int("".join(c for c in json.loads(line)["image"] if c.isdigit()))
            groups["train" if number < 8 else "validation" if number < 12 else "test"].append(line)
        for part, chosen in groups.items():
            (tmp_path / f"{side}-{part}.jsonl").write_text("".join(chosen))
        sides[side] = {part: {"path": f"{side}-{part}.jsonl", "root": str(folder)} for part in groups}
    text = YAML.replace(", fractions: [0.5, 0.25, 0.25]", "")
    start = text.index("data:")
    text = text[:start] + f"data: {json.dumps(sides)}\n" + text[text.index("evaluation:") :]
    (tmp_path / "run.yaml").write_text(text)
    parts = build_parts(load_run_config(tmp_path / "run.yaml"))
    assert [len(questions) for _, questions in parts.items()] == [8, 4, 4, 16, 8, 8, 24, 12, 12]
    with pytest.raises(ConfigError, match="fractions cut a source"):
        load_run_config(tmp_path / "run.yaml", ["data.fractions=[0.5, 0.25, 0.25]"])


def test_memory_is_estimated_and_measured(folder):
    config = load_run_config(folder / "run.yaml")
    task = build_task(config, build_parts(config))
    found = estimate_memory(task)
    every = list(task.model.parameters())
    assert found.weights == sum(p.numel() * 4 for p in every)
    assert found.gradients == 3 * sum(p.numel() * 4 for p in every if p.requires_grad) < 3 * found.weights
    double = load_run_config(folder / "run.yaml", ["task.batch_size=16"])
    larger = estimate_memory(build_task(double, build_parts(double)))
    assert 1.7 < larger.activations / found.activations < 2.3
    assert all(p.grad is None for p in every)
    peak, what = peak_memory(task.model)
    assert peak > torch.finfo(torch.float32).bits and "process" in what
