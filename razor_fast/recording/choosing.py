"""mode="auto": which mode a scoring pass runs in, from estimates of all."""

import torch

from ..errors import RazorError
from .estimate import dry_run
from .graph import can_align
from .leaves import refuse_foreign_hooks
from .report import gigabytes

__all__ = ["available_bytes", "choose"]

NEAR = 1.1  # buffers within this factor of the least: its gradients can be read, and its blocks be recorded in any order


def choose(model, units, forget_loss, retain_loss):
    """(mode, micro_batches, why, {label: predicted peak in bytes}).

    The least predicted peak wins, buffers where it is near. Losses that cannot run without values leave a rule: lockstep,
    whose peak is activations alone.
    """
    several = units.wrapping.group is not None
    try:
        refuse_foreign_hooks(model, units, "stream" if several else "lockstep")
    except RazorError as error:
        return "buffers", "accumulate", f"chosen because other modes are refused here: {error}", {}
    if several:
        why = "chosen because the model lies on several ranks: a rank keeps its share of one gradient, where buffers keeps two"
        return "stream", "accumulate", why, {}
    candidates = [("buffers", "accumulate"), ("stream", "accumulate")]
    if can_align():
        candidates += [("lockstep", "accumulate"), ("lockstep", "together")]
    predicted, failure = {}, None
    for mode, micro_batches in candidates:
        options = {} if mode == "lockstep" else {"freeze_others": True}
        try:
            predicted[mode, micro_batches] = dry_run(
                model, units, forget_loss, retain_loss, mode, micro_batches, **options
            )
        except RazorError:
            raise
        except Exception as error:  # torch's, of whatever kind, on what a fake tensor cannot do
            failure = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"
            break
    if failure is not None:
        mode = "lockstep" if can_align() else "stream"
        return mode, "accumulate", f"chosen without an estimate, since the losses cannot be run dry ({failure})", {}
    best = min(predicted, key=predicted.get)
    if predicted["buffers", "accumulate"] <= NEAR * predicted[best]:
        best = "buffers", "accumulate"
    why = f"chosen for a predicted peak of {gigabytes(predicted[best])}"
    free = available_bytes(next(iter(units.parameters.values())).device)
    if free is not None:
        why += f", {gigabytes(free)} being free"
        if predicted[best] > free:
            why += "; it is likely not to fit: lower the batch size or turn on gradient checkpointing"
    return *best, why, {mode if how == "accumulate" else f"{mode}, {how}": v for (mode, how), v in predicted.items()}


def available_bytes(device):
    """Free bytes of a GPU, or of this machine as Linux tells; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
