"""How much memory a run on a vision-language model takes: estimated before it, measured after it.

    print(estimate_memory(task))      # weights 14.1 GB, gradients 1.8 GB, activations 3.2 GB: 19.1 GB in all
    run(); print(peak_memory(task.model))
"""

import sys
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice

import torch

__all__ = ["MemoryEstimate", "estimate_memory", "peak_memory"]

SIDES = ("forget", "retain", "mismatch")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. weights: of the model. gradients: of the editable part, one set a side. activations: what the backward pass of one
    micro-batch keeps; with gradient checkpointing, the layers' inputs and the inside of the largest layer. What kernels need
    for a moment is not in it."""

    weights: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.activations

    def __str__(self):
        parts = ", ".join(f"{name} {gigabytes(getattr(self, name))}" for name in ("weights", "gradients", "activations"))
        return f"{parts}: {gigabytes(self.total)} in all"


def gigabytes(count):
    return f"{count / 1e9:.2f} GB"


def estimate_memory(task) -> MemoryEstimate:
    """Of a families.vlm.VlmTask. Runs the forward pass of one micro-batch of each loss, and counts what autograd keeps of it."""
    parameters = list(task.model.parameters())
    own = {p.untyped_storage().data_ptr() for p in parameters}
    largest = 0
    for side in SIDES:
        losses = task.losses(side, 0, 0)
        with _layers(task.adapter.checkpointing, own) as inside, _kept(own) as kept:
            for loss in islice(losses, 2):  # the forget side has two for each micro-batch
                largest = max(largest, sum(kept.values()) + max(inside, default=0))
                kept.clear()
                inside.clear()
                del loss
        losses.close()
    return MemoryEstimate(
        weights=sum(p.numel() * p.element_size() for p in parameters),
        gradients=len(SIDES) * sum(p.numel() * p.element_size() for p in parameters if p.requires_grad),
        activations=largest,
    )


@contextmanager
def _kept(apart):
    """Context: {storage: bytes} of what autograd keeps inside, but for the storages of `apart`."""
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


@contextmanager
def _layers(checkpointing, apart):
    """Context: bytes of each checkpointed layer, all of which the backward pass forms again, one layer at a time."""
    found = []

    def visit(run, inputs):
        known = apart | {tensor.untyped_storage().data_ptr() for tensor in inputs}
        with _kept(known) as kept:
            out = run()  # alive while its inside is counted
            found.append(sum(kept.values()))
            del out

    with checkpointing.whole_layers(visit) if checkpointing is not None else nullcontext():
        yield found


def peak_memory(model):
    """(bytes, what they are): the most that was allocated on the model's GPUs, or taken by this process where it has none."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    if devices:
        return sum(torch.cuda.max_memory_allocated(d) for d in devices), f"allocated on {len(devices)} GPU(s)"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), "resident, of the whole process"
