"""ESD (Gandikota et al., ICCV 2023, arXiv 2303.07345): for the concept, a denoiser learns to predict what leads away from it.

    || e(z_t | c) - [ e0(z_t | c_from) - eta (e0(z_t | c) - e0(z_t | empty)) ] ||^2

e0: the original; c_from: the empty prompt unless `erase_from` names another. Parameter groups: cross-attention (ESD-x), which
acts where the prompt asks for it; self-attention; or the whole denoiser. The paper draws z_t by denoising with the model in
training up to t; here z_t are noised latents of the concept's images, which the pipeline drew itself unless data were given.
The original's predictions are computed in blocks, with its weights put back for as long as that takes: no second model is held.
"""

from ..events import Trained
from ..families.diffusion_parts import editable_part
from ..threads import fixed_threads
from ..units import find_units
from .baseline import TOLD, change_weights
from .training import Steps

__all__ = ["run"]

BLOCK = 32  # micro-batches whose targets are computed at a time
GROUPS = {"cross_attention": "cross_attention", "self_attention": "self_attention", "all": "denoiser"}


def run(task, config, *, units=None, directory=None):
    """units are not looked at: config.parameters says what is trained, unless config.include names patterns."""
    model = task.model
    include = config.include or editable_part(GROUPS[config.parameters], [n for n, _ in model.named_parameters()]).include
    layers = find_units(model, heads=False, include=include, exclude=config.exclude or ())

    def work(weights):
        total = config.epochs if config.max_steps is None else min(config.epochs, config.max_steps)
        step, number = Steps(weights, config), 0
        while number < total:
            count = min(BLOCK, total - number)
            with weights.original(), fixed_threads(model):
                places = task.erasures(count, config.seed, number, negative_guidance=config.negative_guidance,
                                       anchor=config.erase_from)  # fmt: skip
            for loss in _drawn(task, places):
                number += 1
                values = step([("forget", loss, 1.0)], model)
                if number in (1, total) or number % max(total // TOLD, 1) == 0:
                    yield Trained(0, "erasing", number, total, values)

    return change_weights(task, config, layers, directory, work)


def _drawn(task, places):
    """The losses, each computed with the fixed number of threads."""
    found = task.erasing_losses(places)
    while True:
        with fixed_threads(task.model):
            try:
                loss = next(found)
            except StopIteration:
                return
        yield loss
