"""Which settings each method is compared with: the best of a small grid on the validation data of a request kept apart.

The request (Data.kept_apart) has a concept and a seed that are not reported. Every method gets the same treatment and the same
bound on its work: BUDGET steps of one micro-batch for the methods that train. The grids cover what papers tune for each model,
the learning rate above all; with everything else the methods run as published.
"""

import json
import time
from pathlib import Path

from razor_fast.methods import METHODS, unlearn
from razor_fast.tuning import loss_of

from .cells import methods_for, told, write
from .settings import keep_settings

__all__ = ["BUDGET", "GRIDS", "choose"]

BUDGET = 200
TRAINED = {"max_steps": BUDGET}
RATES = (3e-5, 1e-4, 3e-4)
# What the edit must move of retrieval stability is what the original retrieves the concept for: about 4 points here.
LOOSE = {"retain_tolerance": 0.01, "tolerances": {"retrieval_stability": 0.06}, "forget_target": 0.02}
SELECTED = [{**LOOSE, "lambda_retain": r, "lambda_mismatch": m} for r in (1.0, 5.0) for m in (1.0, 5.0)]
GRIDS = {
    "razor": SELECTED,
    "random": SELECTED,
    "all_layers": SELECTED,
    "slug": [{}],
    "ssd": [{"alpha": alpha, "dampening": size} for alpha in (5.0, 10.0, 25.0) for size in (0.5, 1.0)],
    "salun": [{**TRAINED, "learning_rate": rate} for rate in RATES],
    "lotus": [{**TRAINED, "learning_rate": rate} for rate in RATES],
    "ga": [{"learning_rate": rate, "max_steps": steps} for rate in (3e-6, 1e-5, 3e-5) for steps in (BUDGET // 10, BUDGET)],
    "ft": [{**TRAINED, "learning_rate": rate} for rate in (*RATES, 1e-3)],
    "ga_ft": [
        {"max_steps": BUDGET // 10, "retain_max_steps": BUDGET, "learning_rate": rate} for rate in (1e-5, 3e-5, 1e-4)
    ],
}


def choose(data, folder, cache, methods=None, *, tell=print):
    """Writes the best settings of each method to settings.json; trials already in `cache` are not run again."""
    concept, seed = data.kept_apart
    task = None
    for method in methods or methods_for(data.family):
        trials = []
        for number, options in enumerate(GRIDS.get(method, [{}])):
            file = Path(cache) / "choosing" / f"{data.name}-{method}-{number}.json"
            record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            if record is None or record["options"] != options:
                if task is None:
                    task = data.make(Path(folder), Path(cache) / "weights", concept, seed, lambda *s: told(tell, *s))
                record = {"options": options, **tried(task, method, options, seed)}
                write(file, record)
            trials.append(record)
            tell(f"{method} {options}: loss {record['loss']:.4f} {record['shown']} in {record['cpu_seconds']:.0f} s")
        best = min(trials, key=lambda record: record["loss"])
        keep_settings(data.name, method, best["options"])


def tried(task, method, options, seed):
    began = time.process_time()
    outcome = unlearn(task, METHODS[method].config(seed=seed, **options), method=method)
    if outcome.edit is not None:
        outcome.edit.revert(task.model)
    before, after = outcome.metrics["validation"]["before"], outcome.metrics["validation"]["after"]
    deciding = (task.forget_metric, *task.retain_metrics)
    return {
        "loss": loss_of(task, before, after, forget_target=0.0),
        "shown": {name: [round(before[name], 4), round(after[name], 4)] for name in deciding},
        "outcome": outcome.outcome,
        "cpu_seconds": time.process_time() - began,
    }
