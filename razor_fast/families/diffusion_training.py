"""What methods that train in small steps ask of a diffusion task: a loss for each micro-batch; and what ESD steers by.

Pure functions of a DiffusionTask; see families.task.Trains.
"""

from dataclasses import dataclass

import torch

from .. import losses
from ..errors import ConfigError
from .diffusion_noise import stratified

__all__ = ["OBJECTIVES", "Erasure", "erasing_losses", "erasures", "training_losses"]

#: objective -> the side whose images it goes over
OBJECTIVES = {"forget": "forget", "retain": "retain", "fit_forget": "forget", "fit_retain": "retain", "relabel": "forget"}


@dataclass
class Erasure:
    """One micro-batch of ESD: noisy latents [B, C, h, w] at timesteps [B], the prompts told, and where predictions are to go."""

    noisy: torch.Tensor
    timesteps: torch.Tensor
    prompts: list
    target: torch.Tensor


def training_losses(task, objective, epoch, seed):
    """Mean losses of one pass over a side's latents. forget: as DiffusionTask.losses weighs it. retain, fit_*: prediction loss.
    relabel: squared distance of the prediction told the own prompt from the one told a retain prompt, which is held still
    (SalUn's loss for generation, arXiv 2310.12508)."""
    if objective not in OBJECTIVES:
        raise ConfigError(f"objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}")
    side = OBJECTIVES[objective]
    generator = _generator(task, seed, epoch, list(OBJECTIVES).index(objective))
    for rows, timesteps, noisy, target in _noised(task, side, generator):
        captions = [task.captions[side][row] for row in rows]
        with task._computing(objective):
            if objective == "relabel":
                others = task.captions["retain"]
                drawn = torch.randint(len(others), (len(rows),), generator=generator).tolist()
                with torch.no_grad():
                    target = task.adapter.predict(noisy, timesteps, task.texts([others[row] for row in drawn]))
            if objective == "forget" and not task.noise_weight:
                loss = 0.0
            else:
                found = task.adapter.predict(noisy, timesteps, task.texts(captions))
                loss = losses.prediction_loss(found, target) * (task.noise_weight if objective == "forget" else 1.0)
        if objective == "forget" and task.align_weight and (task.texts.trainable() or not task.noise_weight):
            loss = loss + task.align_weight * task._alignment()
        yield task._said(loss, objective)


@torch.no_grad()
def erasures(task, count, seed, epoch, *, negative_guidance, anchor=None):
    """`count` micro-batches for ESD, with targets by the model as it is now:

        target = e(z_t | anchor) - eta (e(z_t | c) - e(z_t | empty))          (Gandikota et al. 2023, arXiv 2303.07345)

    z_t: noised latents of the concept's images; c: their prompts. anchor: a prompt; None: the empty one.
    Raises ConfigError for a pipeline without an empty prompt to compare with.
    """
    empty = task.texts.empty()
    if empty is None:
        raise ConfigError(
            f"a {task.adapter.kind} takes guidance as an input and has no prediction for an empty prompt, which ESD needs"
        )
    generator, found = _generator(task, seed, epoch, len(OBJECTIVES)), []
    while len(found) < count:
        for rows, timesteps, noisy, _ in _noised(task, "forget", generator):
            captions = [task.captions["forget"][row] for row in rows]
            free_text = empty.rows(torch.zeros(len(rows), dtype=torch.int64, device=empty.embeddings.device))
            with task._computing("forget"):
                told = task.adapter.predict(noisy, timesteps, task.texts(captions))
                free = task.adapter.predict(noisy, timesteps, free_text)
                start = free
                if anchor is not None:
                    start = task.adapter.predict(noisy, timesteps, task.texts([anchor] * len(rows)))
            found.append(Erasure(noisy, timesteps, captions, start - negative_guidance * (told - free)))
    return found[:count]


def erasing_losses(task, places):
    """The distance of the told prediction from its target, for each Erasure."""
    for place in places:
        with task._computing("forget"):
            found = task.adapter.predict(place.noisy, place.timesteps, task.texts(place.prompts))
            loss = losses.prediction_loss(found, place.target)
        yield task._said(loss, "forget")


def _generator(task, seed, epoch, place):
    return torch.Generator().manual_seed(((seed + task.seed) * 8 + place) * 100_003 + epoch)


def _noised(task, side, generator):
    """(rows, timesteps, noisy, target) of one pass over a side's latents, shuffled; timesteps stratified over the pass."""
    latents = task.latents[side]
    order = torch.randperm(len(latents), generator=generator)
    places = stratified(len(order), generator)
    noise = torch.randn(latents.shape, generator=generator)
    for here in torch.arange(len(order)).split(task.batch_size):
        rows = order[here].tolist()
        clean = latents[rows]
        yield (rows, *task.process.draw(clean, noise[here].to(clean), places[here]))
