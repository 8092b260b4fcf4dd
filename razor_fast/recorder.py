"""Scores out of anyone's backward pass: keeps the gradients of each side, reduces both in one fused pass.

Works inside any training stack: it only reads `.grad` after the user's own `backward()`, and gives back whatever
`.grad` held before. No hook is installed, so none can survive an exception. Calls `ops.segment_stats`; the next piece
is `selection.py`.
"""

from contextlib import contextmanager

import torch

from . import ops
from .errors import FrozenParameterError, NoGradientError, NonFiniteError, RecordingError
from .memory import memory_advice
from .scoring import ScoreTable

__all__ = ["ScoreRecorder", "score"]

SIDES = ("forget", "retain", "mismatch")


class ScoreRecorder:
    """Records forget and retain gradients of the units' parameters and scores every unit.

        with ScoreRecorder(model, units) as recorder:
            with recorder.retain():
                retain_loss.backward()            # as many micro-batches as wanted: gradients accumulate
            with recorder.forget():
                forget_loss.backward()
        scores = recorder.scores(alpha=0.5)

    The sides may be recorded in any order and over several `with` blocks. `recorder.mismatch()` records a third
    gradient for the step; scores do not use it. A block that raises leaves earlier recordings and every `.grad` as
    they were.

    freeze_others=True sets requires_grad=False on every parameter outside the units inside each block, so that their
    gradients are never formed; the forward pass must then run inside the block.

    Raises FrozenParameterError (a unit's parameter has requires_grad=False), ModelError (units of another model),
    RecordingError (scores asked before both sides were recorded, blocks nested).
    """

    def __init__(self, model, units, *, freeze_others=False):
        units.check_model(model)
        frozen = [name for name, p in units.parameters.items() if not p.requires_grad]
        if frozen:
            raise FrozenParameterError(
                f"{len(frozen)} parameters of the units are frozen (first: {frozen[0]}); "
                "call requires_grad_(True) on them, or build the units with find_units(model, skip_frozen=True)"
            )
        self.model, self.units, self.freeze_others = model, units, freeze_others
        self._gradients = {}
        self._open = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        return False

    def forget(self):
        """Context: backward passes inside accumulate into g_f, the gradient of the forget loss (not negated)."""
        return self._record("forget")

    def retain(self):
        """Context: backward passes inside accumulate into g_r."""
        return self._record("retain")

    def mismatch(self):
        """Context: backward passes inside accumulate into g_m (used by the step, not by the scores)."""
        return self._record("mismatch")

    @contextmanager
    def _record(self, side):
        if self._open:
            raise RecordingError(
                f"recorder.{side}() was opened inside recorder.{self._open}(); close one before the other"
            )
        self.units.wrapping.settle()
        everything = list(self.model.parameters())
        wanted = set(map(id, self.units.parameters.values()))
        saved = [(p, p.grad, p.requires_grad) for p in everything]
        self._open = side
        try:
            for p in everything:
                p.grad = None
                if self.freeze_others and id(p) not in wanted and not self.units.wrapping.replicas:
                    p.requires_grad_(False)
            yield self
            self.units.wrapping.settle()
            layout = self.units.layout
            fresh = {name: layout.gradient(p, p.grad) for name, p in self.units.parameters.items()}
            if all(g is None for g in fresh.values()):
                raise NoGradientError(
                    f"no parameter of the units received a gradient inside recorder.{side}(): call backward() inside the "
                    "block, on a loss that depends on the model"
                )
            self._add(side, fresh)
        finally:
            self._open = None
            for p, grad, requires_grad in saved:
                p.requires_grad_(requires_grad)
                p.grad = grad

    def _add(self, side, fresh):
        held = self._gradients.get(side)
        if held is None:
            self._gradients[side] = {name: None if g is None else _dense(g) for name, g in fresh.items()}
            return
        for name, gradient in fresh.items():
            if gradient is not None:
                held[name] = _dense(gradient) if held[name] is None else held[name].add_(_dense(gradient))

    def gradients(self, side):
        """dict parameter name -> gradient (the parameter's shape) or None where that side does not reach it."""
        if side not in SIDES:
            raise RecordingError(f"side {side!r} is unknown; expected one of {SIDES}")
        if side not in self._gradients:
            raise RecordingError(
                f"the {side} gradient was never recorded; run backward() inside `with recorder.{side}():`"
            )
        return self._gradients[side]

    def recorded(self, side):
        return side in self._gradients

    def clear(self):
        """Forget what was recorded, to score again on updated weights."""
        self._gradients = {}

    def scores(self, alpha=0.5, eps=1e-12):
        """ScoreTable of all units: one read of theta, g_f and g_r. See scoring.phi_from_sums for alpha and eps."""
        if self._open:
            raise RecordingError(f"scores() was called inside recorder.{self._open}(); call it after the block")
        forget, retain = self.gradients("forget"), self.gradients("retain")
        layout = self.units.layout
        theta = layout.local(self.units.parameters)
        sums = layout.sum(ops.segment_stats(theta, list(forget.values()), list(retain.values()), self.units.counted))
        return ScoreTable(self.units, sums, alpha=alpha, eps=eps)


LOWER = "the batch size, edit fewer parameters, or turn on gradient checkpointing where the family has it"


def _dense(gradient):
    gradient = gradient.detach()
    return gradient.to_dense() if gradient.is_sparse else gradient


def backward_all(losses, side):
    """backward() on each micro-batch loss of an iterable, or on one scalar. Returns the sum of their values (float).

    Raises NonFiniteError, before its backward, for a loss that is NaN or infinite; RecordingError for no micro-batch, for
    a loss that is no scalar, and for one that depends on no trainable parameter.
    """
    total, count = 0.0, 0
    for loss in [losses] if isinstance(losses, torch.Tensor) else losses:
        if loss.numel() != 1:
            raise RecordingError(
                f"the {side} loss of micro-batch {count} has shape {list(loss.shape)}; expected a scalar: take its mean"
            )
        value = loss.item()
        if value != value or value in (float("inf"), float("-inf")):
            raise NonFiniteError(
                f"the {side} loss of micro-batch {count} is {value}; look at its samples and at the dtype"
            )
        if not loss.requires_grad:
            raise NoGradientError(f"the {side} loss does not depend on any trainable parameter of the model")
        with memory_advice(f"computing gradients of the {side} loss", LOWER):
            loss.backward()
        total, count = total + value, count + 1
    if not count:
        raise RecordingError(f"the {side} loss gave no micro-batch")
    return total


def score(model, units, forget_loss, retain_loss, *, alpha=0.5, eps=1e-12):
    """Score all units of a model from two losses.

    forget_loss, retain_loss: callables without arguments that run the model and return a scalar loss, or an iterable
    of micro-batch losses (each is backpropagated before the next is drawn; weight them so that they add up to the
    loss meant). Returns a ScoreTable. Raises what ScoreRecorder raises, and NonFiniteError for a NaN or infinite loss.
    """
    with ScoreRecorder(model, units, freeze_others=True) as recorder:
        with recorder.retain():
            backward_all(retain_loss(), "retain")
        with recorder.forget():
            backward_all(forget_loss(), "forget")
        return recorder.scores(alpha=alpha, eps=eps)
