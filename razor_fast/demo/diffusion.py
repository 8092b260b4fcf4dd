"""`razor-fast demo diffusion`: train a small Stable Diffusion on drawn digits, forget a digit or a style.

The result is held against a pipeline that was trained without it.
"""

import time
from pathlib import Path

import numpy as np
import torch

from ..config import RazorConfig
from ..data import MemorySource
from ..errors import ConfigError
from ..families.diffusion import DiffusionTask, Drawing
from ..families.diffusion_loading import load_pipeline
from ..families.diffusion_prompts import Prompts
from ..families.image_classifier import train_classifier
from ..methods.razor import unlearn
from ..report import report_from_log, save_report
from ..run_directory import check_run_folder
from .canvas import STYLES, TEMPLATES, load_canvas
from .diffusion_training import Recipe, captions, trained_pipeline
from .digits import NAMES

__all__ = ["demo_config", "demo_task", "domain_of", "run_demo"]

DRAWING = {"validation": Drawing(16, 64, 5, 2.0, 16, 80), "test": Drawing(96, 288, 10, 2.0, 16, 96)}
TRAIN_SHARE = 0.7
FORGET_IMAGES, RETAIN_IMAGES = 64, 192


def domain_of(forget):
    """ "object" for a digit's name, "style" for a style. Raises ConfigError for a word that is neither."""
    if forget in NAMES:
        return "object"
    if forget in STYLES:
        return "style"
    raise ConfigError(
        f"the demo can forget a digit ({', '.join(NAMES)}) or a style ({', '.join(STYLES)}); {forget!r} is neither"
    )


def demo_config(seed=0):
    """The demo's RazorConfig: a drop of 3 points is tolerated on validation."""
    return RazorConfig(seed=seed, retain_tolerance=0.03)


def demo_task(forget, seed, cache, progress=None):
    """The demo's DiffusionTask: original pipeline, retrained pipeline as the reference, classifiers of digit and style.

    cache: folder of trained pipelines. progress: called with (what is trained, steps done, steps in all,
    loss). Raises ConfigError for an unknown word.
    """
    domain = domain_of(forget)
    images, digits = load_canvas()
    order = np.random.default_rng(seed).permutation(len(digits))
    train = order[: int(TRAIN_SHARE * len(order))]
    images, digits, recipe = images[train], digits[train], Recipe(seed=seed)

    def tell(whose):
        return None if progress is None else lambda what, *state: progress(f"{what}{whose}", *state)

    folder = trained_pipeline(images, digits, recipe, cache, None, tell(""))
    without = (domain, (NAMES if domain == "object" else STYLES).index(forget))
    other = trained_pipeline(images, digits, recipe, cache, without, tell(f", never shown {forget}"))
    prompts = Prompts(domain, forget, NAMES, STYLES, TEMPLATES)
    classifiers = demo_classifiers(images, digits, seed, progress)
    sides = demo_images(images, digits, prompts, seed)
    return DiffusionTask(
        load_pipeline(folder, device="cpu"),
        prompts,
        classifiers=classifiers,
        images=sides,
        drawing=DRAWING,
        drift_samples=64,
        batch_size=32,
        gradient_batches=2,
        reference=load_pipeline(other, device="cpu"),
        seed=seed,
    )


def demo_classifiers(images, digits, seed, progress=None):
    """{"object", "style"}: ImageClassifiers trained on real drawings for a few seconds each."""
    pixels = torch.from_numpy(images).permute(0, 1, 4, 2, 3).flatten(0, 1)
    labels = {
        "object": (torch.from_numpy(digits).repeat_interleave(len(STYLES)), NAMES, 500),
        "style": (torch.arange(len(STYLES)).repeat(len(digits)), STYLES, 100),
    }
    found = {}
    for domain, (targets, classes, steps) in labels.items():
        what = {"object": "the classifier of digits", "style": "the classifier of styles"}[domain]
        tell = None if progress is None else lambda *state, what=what: progress(what, *state)
        found[domain] = train_classifier(pixels, targets, classes, steps=steps, seed=seed, progress=tell)
    return found


def demo_images(images, digits, prompts, seed):
    """{"forget", "retain"}: SampleSets of real drawings with train captions, a style drawn for each."""
    draw, table = np.random.default_rng([seed, 1]), captions()
    styles = draw.integers(len(STYLES), size=len(digits))
    target = NAMES.index(prompts.concept) if prompts.domain == "object" else STYLES.index(prompts.concept)
    shown = digits == target if prompts.domain == "object" else styles == target
    train = {p.text for p in prompts.forget["train"] + prompts.retain["train"]}
    found = {}
    for side, rows, count in (
        ("forget", np.flatnonzero(shown), FORGET_IMAGES),
        ("retain", np.flatnonzero(~shown), RETAIN_IMAGES),
    ):
        rows = draw.permutation(rows)[:count]
        texts = [[t for t in table[int(digits[r]), int(styles[r])] if t in train] for r in rows]
        found[side] = MemorySource(
            images[rows, styles[rows]], captions=[t[i % len(t)] for i, t in enumerate(texts)], name=side
        ).read()
    return found


def run_demo(output, *, forget="seven", seed=0, config=None, cache=None, console=None, on_event=None):
    """Train, unlearn, compare, and write everything to the folder `output`; prints as it goes.

    forget: a digit or a style. cache: folder of trained pipelines; default: `demo-weights` beside `output`. Returns
    {"columns": {"original" | "unlearned" | "retrained": test metrics}, "outcome": Outcome, "seconds": {stage: seconds},
    "report": path}. Raises ConfigError (no such class) and RunDirectoryError (the folder holds something else) before any
    training.
    """
    from rich.console import Console

    from .screen import compare_table, training_progress

    console = console or Console()
    output = Path(output)
    domain_of(forget)
    check_run_folder(output)
    cache = Path(cache) if cache is not None else output.parent / "demo-weights"
    config = config or demo_config(seed)
    began = time.perf_counter()
    with training_progress(console) as progress:
        task = demo_task(forget, seed, cache, progress)
    trained = time.perf_counter()
    outcome = unlearn(task, config, run_directory=output, on_event=on_event)
    done = time.perf_counter()
    kind = "digit" if domain_of(forget) == "object" else "style"
    data = report_from_log(output, title=f"A Stable Diffusion pipeline forgets the {kind} {forget}")
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
