"""Which settings each method is compared with: the best of a small grid on the validation data of a request kept apart.

The request (Data.kept_apart) has a concept and a seed that are not reported. There the retrained model is known, so the best is
what comes nearest to it: the least KL divergence, mean of forget and retain images, where the family tells class probabilities;
else tuning.loss_of. Settings within CLOSE of the best that took less than half its time are preferred to it. Every method gets
the same treatment, and those that train the same bound on their work: BUDGET steps of one micro-batch. The grids cover what
papers tune for each model, the learning rate above all; the rest is as published.
"""

import json
import time
from pathlib import Path
from statistics import mean

from razor_fast.evaluation.distance import prediction_distance
from razor_fast.methods import METHODS, unlearn
from razor_fast.tuning import loss_of

from .cells import methods_for, told, write
from .settings import chosen_settings, keep_settings

__all__ = ["BUDGET", "GRIDS", "choose"]

BUDGET = 200
CLOSE = 1.05
# A retrained model still answers a few images of the class rightly, by chance, and RAZOR is to forget no more than that. It keeps
# some seven tenths of the original's captions, so keeping all of them is not what to search for. The weights of the losses are
# those that were best, of (1, 1), (3, 5) and (5, 10), on the same request with the first of the tolerances.
PRECISE = {"forget_target": 0.04, "overshoot": False, "retain_tolerance": 0.005, "lambda_retain": 3.0, "lambda_mismatch": 5.0}
SELECTED = [{**PRECISE, "tolerances": {"retrieval_stability": drop}} for drop in (0.2, 0.12)]


def trained(*rates, **options):
    return [{"max_steps": BUDGET, "learning_rate": rate, **options} for rate in rates]


GRIDS = {
    "razor": SELECTED,
    "salun": trained(1e-4, 5e-4),
    "ssd": [{"alpha": alpha} for alpha in (2.0, 3.0, 5.0, 7.0, 8.0, 9.0)],  # 10, the paper's, does nothing here
    "lotus": [*trained(1e-4, 5e-4), *trained(1e-4, 5e-4, alpha=32.0)],  # alpha: the authors' for samples, and for a class
    "ga": trained(1e-5, 3e-5, 1e-4, max_steps=BUDGET // 10),
    "ft": trained(1e-4, 1e-3),
    "ga_ft": trained(3e-5, 1e-4, max_steps=BUDGET // 10, retain_max_steps=BUDGET),
}
FOLLOW = {"random": "razor", "all_layers": "razor"}  # controls: the settings of what they are held against


def choose(data, folder, cache, methods=None, *, tell=print):
    """Writes the best settings of each method to settings.json; trials already in `cache` are not run again."""
    concept, seed = data.kept_apart
    task = None
    for method in methods or methods_for(data.family):
        grid = GRIDS.get(FOLLOW.get(method, method), [{}])
        if method in FOLLOW:
            keep_settings(data.name, method, chosen_settings(data.name, FOLLOW[method]))
            continue
        trials = []
        for number, options in enumerate(grid if len(grid) > 1 else ()):
            file = Path(cache) / "choosing" / f"{data.name}-{method}-{number}.json"
            record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            if record is None or record["options"] != options:
                if task is None:
                    task = data.make(Path(folder), Path(cache) / "weights", concept, seed, lambda *s: told(tell, *s))
                record = {"options": options, **tried(task, method, options, seed)}
                write(file, record)
            trials.append(record)
            tell(f"{method} {options}: loss {record['loss']:.4f} {record['shown']} in {record['cpu_seconds']:.0f} s")
        keep_settings(data.name, method, best_of(trials)["options"] if trials else grid[0])


def best_of(trials):
    best = min(trials, key=lambda record: record["loss"])
    close = [r for r in trials if r["loss"] <= CLOSE * best["loss"] and r["cpu_seconds"] < best["cpu_seconds"] / 2]
    return min(close, key=lambda record: record["cpu_seconds"], default=best)


def tried(task, method, options, seed):
    began = time.process_time()
    outcome = unlearn(task, METHODS[method].config(seed=seed, **options), method=method)
    before, after = outcome.metrics["validation"]["before"], outcome.metrics["validation"]["after"]
    try:
        loss = far(task) if hasattr(task, "class_log_probs") else loss_of(task, before, after)
    finally:
        if outcome.edit is not None:
            outcome.edit.revert(task.model)
    deciding = (task.forget_metric, *task.retain_metrics)
    return {
        "loss": loss,
        "shown": {name: [round(before[name], 4), round(after[name], 4)] for name in deciding},
        "outcome": outcome.outcome,
        "cpu_seconds": time.process_time() - began,
    }


def far(task):
    """KL divergence from the retrained model on validation data, mean of the two sides."""
    truth, found = task.on(task.reference), []
    for side in ("forget", "retain"):
        (said, _), (wanted, _) = (t.class_log_probs("validation", side) for t in (task, truth))
        found.append(prediction_distance(said, wanted).kl)
    return mean(found)
