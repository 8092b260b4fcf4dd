"""Gradients that do not depend on the number of CPU threads.

    with same_for_any_threads():
        loss.backward()

torch splits the sums over rows in two backward passes among its threads, so their last bits follow the thread count:
LayerNorm's weight and bias gradients, and the weight gradient of a convolution. Everything else that a transformer uses
gave equal bits for 1 and 2 threads (tests/test_threads.py measures it). Here these sums are formed by operations that
split columns only. Other devices and other operators are left alone. Calls nothing of razor_fast.
"""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["same_for_any_threads"]

aten = torch.ops.aten


class same_for_any_threads(TorchDispatchMode):  # noqa: N801 - used as a context manager, like torch.no_grad
    """Context: backward passes inside give the same bits whatever torch.get_num_threads() is. CPU only."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        replacement = REPLACED.get(function)
        if replacement is not None and arguments[0].device.type == "cpu":
            found = replacement(*arguments)
            if found is not None:
                return found
        return function(*arguments, **(options or {}))


def _layer_norm_backward(grad, values, normalized_shape, mean, rstd, weight, bias, mask):
    if not (mask[1] or mask[2]):
        return None
    to_input = None
    if mask[0]:
        to_input = aten.native_layer_norm_backward.default(
            grad, values, normalized_shape, mean, rstd, weight, bias, [True, False, False]
        )[0]
    rows, columns = mean.numel(), math.prod(normalized_shape)
    flat = grad.reshape(rows, columns).to(mean.dtype)
    to_weight = to_bias = None
    if mask[1]:
        normal = (values.reshape(rows, columns).to(mean.dtype) - mean.reshape(rows, 1)) * rstd.reshape(rows, 1)
        to_weight = (normal * flat).sum(dim=0).reshape(normalized_shape).to(weight.dtype)
    if mask[2]:
        to_bias = flat.sum(dim=0).reshape(normalized_shape).to((bias if bias is not None else grad).dtype)
    return to_input, to_weight, to_bias


def _patch_embedding_backward(
    grad, values, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask
):
    """A convolution whose patches do not overlap is a matrix product, and so is its weight gradient."""
    patch = list(weight.shape[2:])
    fits = all(s % p == 0 for s, p in zip(values.shape[2:], patch))
    if transposed or groups != 1 or list(stride) != patch or any(padding) or set(dilation) != {1} or not fits:
        return None
    if len(patch) != 2 or not mask[1]:
        return None
    to_input = None
    if mask[0]:
        to_input = aten.convolution_backward.default(
            grad, values, weight, bias_sizes, stride, padding, dilation, transposed, output_padding, groups,
            [True, False, False],
        )[0]  # fmt: skip
    columns = torch.nn.functional.unfold(values, patch, stride=patch)  # [B, 3 * patch area, patches]
    flat = grad.flatten(2)  # [B, out, patches]
    size = columns.shape[1]
    to_weight = (flat.transpose(0, 1).reshape(weight.shape[0], -1) @ columns.transpose(1, 2).reshape(-1, size)).reshape(
        weight.shape
    )
    return to_input, to_weight, flat.sum(dim=2).sum(dim=0) if mask[2] else None


REPLACED = {
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.convolution_backward.default: _patch_embedding_backward,
}
