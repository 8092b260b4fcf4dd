"""Gradients of a Task's losses: of every unit for the scores, of a few for a step. Calls the recorder; knows no family.

The score of a round needs g_f and g_r apart. A step needs only their weighted sum with g_m, so on the few units that move one
backward pass of the weighted loss forms it in one buffer. Where weights are 16-bit, torch accumulates `.grad` in 16 bits too:
there the sides stay apart and are added in fp32.
"""

from functools import partial

import torch

from .errors import NoGradientError
from .recorder import ScoreRecorder, backward_all, score
from .recording.choosing import choose
from .recording.directions import Directions
from .threads import fixed_threads

__all__ = ["GradientSource"]

SIDES = ("forget", "retain", "mismatch")


class GradientSource:
    """The gradients of one run. task: families.Task; config: RazorConfig; units: all to choose from; cost: LoopCost to add to.

    losses: loss values of the last call, by side.
    """

    def __init__(self, task, config, units, cost):
        self.task, self.config, self.cost = task, config, cost
        self.recorder = ScoreRecorder(task.model, units, freeze_others=True)
        self.losses = {}
        self.way = None  # (mode, micro_batches) of the scores, settled before the first
        self.directions = None  # formed with the last scores, where these kept no gradients

    @property
    def weights(self):
        """Coefficients of the three gradients in a step, by side: the forget loss is ascended (docs/method.md)."""
        c = self.config
        return {"forget": -c.lambda_forget * c.rho, "retain": c.lambda_retain, "mismatch": c.lambda_mismatch}

    def scores(self, round_index):
        """(ScoreTable, {side: gradients}) at the present weights. In round 0 the mismatch gradient is zero and left out.

        In a mode that keeps no gradients there is None in their place: `begin` then takes directions that were formed on the
        way, or gradients of the few units that move.
        """
        self.draw, self.directions = round_index * self.config.inner_steps, None
        if self.way is None:
            self.way = self._settle()
        if self.way[0] != "buffers":
            return self._consumed(round_index), None
        recorder = self.recorder
        recorder.clear()
        found = self._sides(recorder, SIDES if round_index else SIDES[:2], round_index * self.config.inner_steps)
        with self.cost.timed("scoring"):
            table = recorder.scores(alpha=self.config.alpha, eps=self.config.eps)
        read = [p for p in recorder.units.parameters.values()]
        read += [g for side in ("forget", "retain") for g in found[side].values() if g is not None]
        self.cost.scored_bytes += sum(t.numel() * t.element_size() for t in read)
        return table, found

    def _settle(self):
        if self.config.score_mode != "auto":
            return self.config.score_mode, "accumulate"
        with fixed_threads(self.task.model):
            losses = (partial(self.task.losses, side, self.draw, self.config.seed) for side in SIDES[:2])
            return choose(self.task.model, self.recorder.units, *losses)[:2]

    def _consumed(self, round_index):
        """Scores of a pass that keeps no gradients; in round 0, where K is the best by score, with their directions."""
        c, (mode, micro_batches) = self.config, self.way
        alone = self.recorder.units.wrapping.group is None  # shares of a gradient form no direction on the way
        if alone and not round_index and c.initial_units is not None and c.selection == "score":
            weights = self.weights
            self.directions = Directions(
                self.recorder.units, forget=weights["forget"], retain=weights["retain"], count=c.initial_units, alpha=c.alpha,
                eps=c.eps,
            )  # fmt: skip
        with self.cost.timed("gradients"), fixed_threads(self.task.model):
            table = score(
                self.task.model, self.recorder.units, lambda: self._counted(self.task.losses("forget", self.draw, c.seed)),
                lambda: self._counted(self.task.losses("retain", self.draw, c.seed)), mode=mode, alpha=c.alpha, eps=c.eps,
                micro_batches=micro_batches, directions=self.directions,
            )  # fmt: skip
        self.losses = dict(table.memory_report().losses)
        return table

    def begin(self, step, found):
        """Set the first direction of a StepState: from the gradients of the last scores(), where it kept any."""
        if found is not None:
            return self.set_direction(step, found)
        if self.directions is not None and all(unit.name in self.directions.found for unit in step.units):
            return step.set_flat(self.directions.found)
        losses = self.losses
        self.direct(step, self.draw)
        self.losses = losses

    def clear(self):
        """Free the gradients of the last scores()."""
        self.recorder.clear()

    def direct(self, step, draw):
        """Set the direction of a StepState from the gradients of its units at the present weights, in batches `draw`."""
        recorder = ScoreRecorder(self.task.model, step.units, freeze_others=True)
        wanted = {side: weight for side, weight in self.weights.items() if weight}
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in step.units.parameters.values()):
            return self.set_direction(step, self._sides(recorder, wanted, draw, partial=True))
        self.losses = dict.fromkeys(wanted, 0.0)
        try:
            with self.cost.timed("gradients"), recorder.forget(), fixed_threads(self.task.model):
                for parts, loss in weighted_losses(self.task, wanted, draw, self.config.seed):
                    self._backward(parts, loss, step.units.wrapping.group is None)
        except NoGradientError:
            return step.set_combined(None)
        step.set_combined(recorder.gradients("forget"))

    def set_direction(self, step, found):
        """The same from gradients that are at hand, by side."""
        c = self.config
        step.set_direction(
            found.get("forget"), found.get("retain"), found.get("mismatch"), lambda_forget=c.lambda_forget, rho=c.rho,
            lambda_retain=c.lambda_retain, lambda_mismatch=c.lambda_mismatch,
        )  # fmt: skip

    def _backward(self, parts, loss, alone):
        try:
            backward_all([loss], " and ".join(parts), finite=alone)
        except NoGradientError:
            return  # this side does not reach these few units (a text-only retain loss, a vision layer): its term is zero
        self.cost.forwards, self.cost.backwards = self.cost.forwards + 1, self.cost.backwards + 1
        for side, value in parts.items():
            self.losses[side] += value.item()

    def _sides(self, recorder, sides, draw, partial=False):
        """Gradients of each side by itself: {side: {parameter name: tensor or None}}. partial: a side may reach no unit."""
        self.losses = {}
        for side in sides:
            try:
                with self.cost.timed("gradients"), getattr(recorder, side)(), fixed_threads(self.task.model):
                    losses, alone = self.task.losses(side, draw, self.config.seed), recorder.units.wrapping.group is None
                    self.losses[side] = backward_all(self._counted(losses), side, finite=alone)
            except NoGradientError:
                if not partial:
                    raise
        return {side: recorder.gradients(side) for side in sides if recorder.recorded(side)}

    def _counted(self, losses):
        for loss in [losses] if isinstance(losses, torch.Tensor) else losses:
            self.cost.forwards, self.cost.backwards = self.cost.forwards + 1, self.cost.backwards + 1
            yield loss


def weighted_losses(task, weights, draw, seed):
    """Micro-batches of sum over sides of weights[side] * losses(side): pairs ({side: its detached share}, weighted loss).

    A task whose sides share a forward pass says so with `joint_losses(weights, draw, seed)`, which yields the same pairs.
    """
    if hasattr(task, "joint_losses"):
        yield from task.joint_losses(weights, draw, seed)
        return
    for side, weight in weights.items():
        losses = task.losses(side, draw, seed)
        for loss in [losses] if isinstance(losses, torch.Tensor) else losses:
            yield {side: loss.detach()}, weight * loss
