"""How much memory a run on a vision-language model takes: estimated before it, measured after it.

    print(estimate_memory(task))      # weights 14.1 GB, gradients 1.8 GB, activations 3.2 GB: 19.1 GB in all
    run(); print(peak_memory(task.model))
"""

import sys
from dataclasses import dataclass

import torch

__all__ = ["MemoryEstimate", "estimate_memory", "peak_memory"]

SIDES = ("forget", "retain", "mismatch")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes. weights: of the model. gradients: of the editable part, one set a side. activations: what the backward pass of one
    micro-batch keeps. What kernels need for a moment is not in it."""

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
    for side in SIDES[:2]:
        kept = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        losses = task.losses(side, 0, 0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            for loss in losses:
                largest = max(largest, sum(kept.values()))
                kept.clear()
                del loss
                break
        losses.close()
    return MemoryEstimate(
        weights=sum(p.numel() * p.element_size() for p in parameters),
        gradients=len(SIDES) * sum(p.numel() * p.element_size() for p in parameters if p.requires_grad),
        activations=largest,
    )


def peak_memory(model):
    """(bytes, what they are): the most that was allocated on the model's GPUs, or taken by this process where it has none."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    if devices:
        return sum(torch.cuda.max_memory_allocated(d) for d in devices), f"allocated on {len(devices)} GPU(s)"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), "resident, of the whole process"
