"""`razor-fast demo clip`: train a CLIP on real digits, forget one, hold the result against a model that never saw it."""

import time
from pathlib import Path

from ..config import RazorConfig
from ..errors import ConfigError
from ..families.clip import ClipTask
from ..methods.razor import unlearn
from ..report import report_from_log, save_report
from ..run_directory import check_run_folder
from .clip_training import Recipe, preprocessing, trained_model
from .digits import NAMES, TEMPLATES, digit_parts

__all__ = ["run_demo", "demo_task"]

GRADIENT_BATCHES = 6


def demo_task(forget="seven", seed=0, cache=None, progress=None):
    """The demo's ClipTask: original model, retrained model as the reference, captioned digits.

    progress: called with (what is trained, steps done, steps in all, loss). Raises ConfigError for a word that is no digit.
    """
    if forget not in NAMES:
        raise ConfigError(f"the demo can forget one of {', '.join(NAMES)}; {forget!r} is none of them")
    parts, recipe = digit_parts(forget, seed), Recipe(seed=seed)

    def tell(what):
        return None if progress is None else lambda *state: progress(what, *state)

    original = trained_model(parts.retain.train + parts.forget.train, recipe, cache, tell("the original"))
    retrained = trained_model(parts.retain.train, recipe, cache, tell(f"the yardstick, never shown a {forget}"))
    preprocess, tokenizer = preprocessing(recipe)
    for model in (original, retrained):
        model.token_embedding.requires_grad_(False)
    return ClipTask(
        original,
        parts,
        forget,
        preprocess=preprocess,
        tokenizer=tokenizer,
        classes=NAMES,
        templates=TEMPLATES,
        reference=retrained,
        gradient_batches=GRADIENT_BATCHES,
        seed=seed,
    )


def run_demo(output, *, forget="seven", seed=0, config=None, cache=None, console=None, on_event=None):
    """Train, unlearn, compare, and write everything to the folder `output`; prints as it goes.

    cache: folder of trained weights; default: `demo-weights` beside `output`. Returns {"columns": {"original" |
    "unlearned" | "retrained": test metrics}, "outcome": methods.razor.Outcome, "seconds": {stage: seconds}, "report": path}.
    Raises ConfigError (no such digit) and RunDirectoryError (the folder holds something else) before any training.
    """
    from rich.console import Console

    from .screen import compare_table, training_progress

    console = console or Console()
    output = Path(output)
    if forget not in NAMES:
        raise ConfigError(f"the demo can forget one of {', '.join(NAMES)}; {forget!r} is none of them")
    check_run_folder(output)
    cache = Path(cache) if cache is not None else output.parent / "demo-weights"
    config = config or RazorConfig(seed=seed)
    began = time.perf_counter()
    with training_progress(console) as progress:
        task = demo_task(forget, seed, cache, progress)
    trained = time.perf_counter()
    outcome = unlearn(task, config, run_directory=output, on_event=on_event)
    done = time.perf_counter()
    data = report_from_log(output, title=f"A CLIP model forgets the digit {forget}")
    save_report(data, output / "report.html", output / "report.json")
    columns = {column.name: dict(column.metrics) for column in data.columns}
    console.print(compare_table(columns, forget))
    console.print(f"[bold]{outcome.outcome}[/]: {outcome.message}")
    if outcome.edit is not None:
        share = outcome.edit.summary()["share"]
        console.print(f"edited: {', '.join(outcome.edit.units)} ({share:.2%} of the model)")
        console.print(f"reverting gives back every byte: {outcome.proof['reverted_bit_for_bit']}")
    console.print(f"written to [bold]{output}[/]: edit.safetensors, edit.undo.safetensors, log.jsonl, report.html")
    seconds = {"training": trained - began, "unlearning": done - trained, "report": time.perf_counter() - done}
    console.print(", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()), style="dim")
    return {"columns": columns, "outcome": outcome, "seconds": seconds, "report": output / "report.html"}
