"""Retraining without the forget set: the only truth there is, as an edit like any other.

The user's recipe trains; this file writes the weights it gives into the task's model, so that the same call, the same
measurements and the same edit file serve the yardstick and what is held against it.
"""

import torch

from ..errors import MethodError
from ..events import Trained
from .baseline import change_weights
from .weights import layers_of

__all__ = ["run"]


def run(task, config, *, units=None, directory=None, recipe=None):
    """recipe: callable(task, seed) -> nn.Module of the same architecture, trained on retain samples alone."""
    if recipe is None:
        raise MethodError(
            "the method retrain needs a recipe: unlearn(task, method='retrain', recipe=train), where train(task, seed) returns "
            "a model of the same architecture that was trained without the forget samples"
        )

    def work(weights):
        fresh = dict(recipe(task, config.seed).named_parameters())
        problem = next((n for n, p in weights.parameters.items() if n not in fresh or fresh[n].shape != p.shape), None)
        if problem is not None:
            raise MethodError(f"the recipe's model has no {problem} of that shape; it must be of the task's architecture")
        with torch.no_grad():
            for name, parameter in weights.parameters.items():
                parameter.copy_(fresh[name])
        yield Trained(0, "retraining", 1, 1, {})

    return change_weights(task, config, layers_of(task.model, config, units), directory, work)
