"""RAZOR (CVPR 2026, arXiv 2603.14819) as one call: run the loop, capture the edit, keep what is worth keeping."""

import json
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..config import RazorConfig
from ..edit import Edit
from ..events import RunEnded, Scored, plain
from ..families.task import report_sections, take_snapshot
from ..fingerprint import fingerprint, hash_text
from ..growth import unlearn_events
from ..judge import Judge
from ..run_directory import RunDirectory, read_log
from ..scoring import ScoreRow, write_scores
from ..threads import fixed_threads

__all__ = ["Outcome", "unlearn"]


@dataclass
class Outcome:
    """What a run did.

    edit: with its undo at hand, or None when nothing was changed. outcome, message: those of events.RunEnded.
    metrics: {"validation" | "test": {"before" | "after": {metric: value}}}; nothing was searched on test.
    scores: the rows of round 0. totals: rounds, probes, seconds. proof: whether reverting gave back every byte of the
    model, and so whether nothing outside the edit had changed. run_directory: where files were written, or None.
    """

    edit: Edit | None
    outcome: str
    message: str
    metrics: dict
    scores: list
    config: RazorConfig
    totals: dict = field(default_factory=dict)
    proof: dict = field(default_factory=dict)
    run_directory: Path | None = None


def unlearn(task, config=None, *, run_directory=None, units=None, on_event=None):
    """Make the task's model forget, in place, and return the Outcome with its edit.

    task: a families.Task. config: RazorConfig. run_directory: folder for log, state, edit, undo and result; the same call
    on the folder of a killed run resumes it, and ends in the same edit, bit for bit. units: Units to choose from.
    on_event: called with every event. An exception, Ctrl-C included, leaves the model at the last accepted step and the
    folder ready to resume; outcome.edit.revert(task.model) restores every byte.
    Raises what growth.unlearn_events and RunDirectory raise, before anything is changed.
    """
    config = config or RazorConfig()
    base = fingerprint(task.model).model
    run = None
    if run_directory is not None:
        settings = {"razor": config.model_dump(mode="json"), "task": task.describe(), "base_sha256": base}
        settings["units"] = None if units is None else hash_text(json.dumps(list(units.names)))
        run = RunDirectory(run_directory, settings)
    with fixed_threads(task.model):
        shots = {"original": take_snapshot(task)}
    scores, ended = [], None
    loop = unlearn_events(task, config, units=units, run=run)
    with closing(loop):
        while True:
            try:
                event = next(loop)
            except StopIteration as stop:
                state = stop.value
                break
            if isinstance(event, Scored) and event.round == 0:
                scores = event.rows
            if isinstance(event, RunEnded):
                ended = event
            if on_event is not None:
                on_event(event)
    with fixed_threads(task.model):
        shots["unlearned"] = take_snapshot(task)
    metrics = {
        "validation": {"before": ended.before, "after": ended.after},
        "test": {"before": shots["original"]["metrics"], "after": shots["unlearned"]["metrics"]},
    }
    edit, proof = None, {}
    if state.edited:
        edit = capture(task, state, config, metrics)
        proof = prove(edit, task.model, base)
    if run is not None and not scores:
        scores = _logged_scores(run)
    outcome = Outcome(edit, ended.outcome, ended.message, metrics, scores, config, ended.totals, proof)
    if run is not None:
        outcome.run_directory = run.path
        write(run, outcome, task, shots)
    return outcome


def prove(edit, model, base):
    """Revert the edit and apply it again, on the model itself, hashing every byte in between: what the report claims."""
    edit.revert(model)
    try:
        identical = fingerprint(model).model == base
    finally:
        edit.apply(model)
    return {"reverted_bit_for_bit": identical, "outside_identical": identical}


def _logged_scores(run):
    """Round 0's scores of a resumed run."""
    for record in read_log(run.path / "log.jsonl"):
        if record["event"] == "Scored" and record["round"] == 0:
            return [ScoreRow(**row) for row in record["rows"]]
    return []


def capture(task, state, config, metrics):
    """The edit between the units' originals and what the model holds now. Times and paths stay out: the same seed gives
    the same file."""
    old = [piece for name in state.edited for piece in state.step.original_slices(name)]
    return Edit.capture(
        task.model,
        list(state.step.units.subset(state.edited)),
        old,
        manifest={
            "configuration": {"method": "razor", "razor": config.model_dump(mode="json"), "task": task.describe()},
            "seeds": {"run": config.seed},
            "metrics_before": plain(metrics["test"]["before"]),
            "metrics_after": plain(metrics["test"]["after"]),
        },
    )


def write(run, outcome, task, shots):
    """The run's results: edit, undo, scores, and result.json with the names of razor_fast.report.ReportData."""
    result = {
        "outcome": outcome.outcome,
        "message": outcome.message,
        "metrics": outcome.metrics,
        "totals": outcome.totals,
        "targets": {
            "forget_target": outcome.config.forget_target,
            "forget_metric": task.forget_metric,
            "floors": Judge(task, outcome.config, outcome.metrics["validation"]["before"]).floors,
        },
        "settings": {"device": str(next(task.model.parameters()).device)},
        **report_sections(task, shots),
    }
    edit = outcome.edit
    if edit is not None:
        edit.save(run.path / "edit.safetensors", undo=run.path / "edit.undo.safetensors", overwrite=True)
        summary = edit.summary()
        result["edit_sha256"] = edit.sha256
        result["edit"] = {
            "units": [
                {"name": u["name"], "elements": u["elements"], "relative_change": u["change"]} for u in summary["units"]
            ],
            "elements": summary["elements"],
            "share_of_model": summary["share"],
            "file": "edit.safetensors",
            "undo_file": "edit.undo.safetensors",
            "sha256": edit.sha256,
            **outcome.proof,
        }
        result["settings"]["versions"] = summary["versions"]
    write_scores(run.path / "scores.csv", outcome.scores)
    run.write_json("result.json", result)
