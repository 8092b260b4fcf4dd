"""How a launch is told of many tensors: one small int64 table of addresses, dtype codes and strides.

The table is copied to the device once and reused while the tensors stay where they are, so that a repeated call copies
nothing and can be captured in a CUDA graph. A tensor is seen as the matrix [dim 0, the rest].
"""

from __future__ import annotations

from collections import OrderedDict

import torch

COLUMNS = 4  # address, dtype code, row stride, column stride; strides in elements
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
ABSENT = -1
_KEPT = 8
_tables: OrderedDict[tuple, torch.Tensor] = OrderedDict()


def describe(tensor: torch.Tensor, kept: list[torch.Tensor]) -> tuple[int, int, int, int]:
    """A tensor's row in the table. One whose dims 1.. have no common stride is copied, and the copy kept in `kept`."""
    elements = tensor.numel()
    if elements == 0:
        return 0, ABSENT, 0, 0
    rows = tensor.shape[0] if tensor.dim() else 1
    if tensor.is_contiguous():
        return tensor.data_ptr(), CODES[tensor.dtype], elements // rows, 1
    try:
        matrix = tensor.view(rows, elements // rows)
    except RuntimeError:
        matrix = tensor.reshape(rows, elements // rows)
        kept.append(matrix)
    return matrix.data_ptr(), CODES[tensor.dtype], matrix.stride(0), matrix.stride(1)


def device_table(rows: list[tuple[int, ...]], device: torch.device) -> torch.Tensor:
    """The rows as an int64 tensor on the device: that of an earlier call on this stream where nothing has moved."""
    # another stream could read the table before the copy on this one has ended
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    key = (device, stream, tuple(rows))
    table = _tables.get(key)
    if table is None:
        host = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda")
        table = _tables[key] = host.to(device, non_blocking=True)
        while len(_tables) > _KEPT:
            _tables.popitem(last=False)
    else:
        _tables.move_to_end(key)
    return table
