"""RAZOR (CVPR 2026, arXiv 2603.14819) as one call: run the loop, capture the edit, keep what is worth keeping."""

from dataclasses import dataclass, field
from pathlib import Path

from ..config import RazorConfig
from ..edit import Edit
from ..events import RunEnded, Scored
from ..fingerprint import fingerprint
from ..growth import unlearn_events
from ..run_directory import RunDirectory, read_log
from ..scoring import ScoreRow, write_scores

__all__ = ["Outcome", "unlearn"]


@dataclass
class Outcome:
    """What a run did.

    edit: with its undo at hand, or None when nothing was changed. outcome, message: those of events.RunEnded.
    metrics: {"validation" | "test": {"before" | "after": {metric: value}}}; nothing was searched on test.
    scores: the rows of round 0. run_directory: where files were written, or None.
    """

    edit: Edit | None
    outcome: str
    message: str
    metrics: dict
    scores: list
    totals: dict = field(default_factory=dict)
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
    run = None
    if run_directory is not None:
        base = fingerprint(task.model)
        run = RunDirectory(
            run_directory,
            {"razor": config.model_dump(mode="json"), "task": task.describe(), "base_sha256": base.sha256},
        )
    test_before = task.evaluate("test")
    scores, ended = [], None
    loop = unlearn_events(task, config, units=units, run=run)
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
    metrics = {
        "validation": {"before": ended.before, "after": ended.after},
        "test": {"before": test_before, "after": task.evaluate("test")},
    }
    edit = capture(task, state, config, metrics) if state.step is not None else None
    outcome = Outcome(edit, ended.outcome, ended.message, metrics, scores, ended.totals, run.path if run else None)
    if run is not None:
        outcome.scores = scores or _logged_scores(run)
        write(run, outcome)
    return outcome


def _logged_scores(run):
    """Round 0's scores of a resumed run."""
    for record in read_log(run.path / "log.jsonl"):
        if record["event"] == "Scored" and record["round"] == 0:
            return [ScoreRow(**row) for row in record["rows"]]
    return []


def capture(task, state, config, metrics):
    """The edit between the step state's originals and what the model holds now. Times and paths stay out: the same seed
    gives the same file."""
    step = state.step
    flat = step.plan.slices.tolist()
    dtypes = [tensor.dtype for tensor in step.tensors]
    old = [step.original[s[6] : s[6] + s[3] * s[5]].reshape(s[3], s[5]).to(dtypes[s[1]]).cpu() for s in flat]
    settings = config.model_dump(mode="json")
    return Edit.capture(
        task.model,
        list(step.units),
        old,
        manifest={
            "configuration": {"method": "razor", "razor": settings, "task": task.describe()},
            "seeds": {"run": config.seed},
            "metrics_before": metrics["test"]["before"],
            "metrics_after": metrics["test"]["after"],
        },
    )


def write(run, outcome):
    result = {
        "outcome": outcome.outcome,
        "message": outcome.message,
        "metrics": outcome.metrics,
        "totals": outcome.totals,
    }
    if outcome.edit is not None:
        outcome.edit.save(run.path / "edit.safetensors", undo=run.path / "edit.undo.safetensors", overwrite=True)
        result["edit_sha256"] = outcome.edit.sha256
    write_scores(run.path / "scores.csv", outcome.scores)
    run.write_json("result.json", result)
