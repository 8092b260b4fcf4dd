"""segment_stats on a GPU: one program per tile of the plan, then one per unit. No atomics, no host synchronisation.

Any number of parameters, of mixed dtype and strides, share one launch: a small int64 table holds each tensor's address,
dtype code and strides. It is copied to the device once and reused while the tensors stay where they are, so that a repeated
call launches two kernels and nothing else, and can be captured in a CUDA graph.
"""

from __future__ import annotations

import os
from collections import OrderedDict

import torch
import triton
import triton.language as tl

BLOCK = 2048  # elements a program loads at a time
UNIT_BLOCK = 128  # partial sums a program adds at a time
WARPS = 8
TABLE_COLUMNS = 4  # address, dtype code, row stride, column stride
ABSENT = -1
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
_KEPT_TABLES = 8


@triton.jit
def _load(address, code, offsets, mask, ACC: tl.constexpr):
    """Values at `offsets`, in the accumulation type; zeros for an absent tensor and outside the mask."""
    values = tl.zeros(offsets.shape, dtype=ACC)
    if code == 0:
        values = tl.load(address.to(tl.pointer_type(tl.float32)) + offsets, mask=mask, other=0.0).to(ACC)
    elif code == 1:
        values = tl.load(address.to(tl.pointer_type(tl.bfloat16)) + offsets, mask=mask, other=0.0).to(ACC)
    elif code == 2:
        values = tl.load(address.to(tl.pointer_type(tl.float16)) + offsets, mask=mask, other=0.0).to(ACC)
    elif code == 3:
        values = tl.load(address.to(tl.pointer_type(tl.float64)) + offsets, mask=mask, other=0.0).to(ACC)
    return values


@triton.jit
def _offsets(table, row, column, r, c):
    return (row + r) * tl.load(table + 2) + (column + c) * tl.load(table + 3)


@triton.jit
def tile_sums(table, tiles, partials, parameters, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """partials[tile] = sums of theta^2, g_f^2, g_r^2, g_f g_r over one tile."""
    tile = tl.program_id(0).to(tl.int64)
    tiles += tile * 8
    parameter = tl.load(tiles)
    row = tl.load(tiles + 1)
    columns = tl.load(tiles + 4).to(tl.int32)  # a tile is small: 32 bits divide faster
    column = tl.load(tiles + 3)
    size = tl.load(tiles + 2).to(tl.int32) * columns
    at_theta = table + parameter * 4
    at_forget = table + (parameters + parameter) * 4
    at_retain = table + (2 * parameters + parameter) * 4
    theta_sum = tl.zeros((BLOCK,), dtype=ACC)
    forget_sum = tl.zeros((BLOCK,), dtype=ACC)
    retain_sum = tl.zeros((BLOCK,), dtype=ACC)
    cross_sum = tl.zeros((BLOCK,), dtype=ACC)
    theta_code = tl.load(at_theta + 1)
    forget_code = tl.load(at_forget + 1)
    retain_code = tl.load(at_retain + 1)
    for start in range(0, size, BLOCK):
        e = start + tl.arange(0, BLOCK)
        mask = e < size
        r = (e // columns).to(tl.int64)
        c = (e % columns).to(tl.int64)
        t = _load(tl.load(at_theta), theta_code, _offsets(at_theta, row, column, r, c), mask, ACC)
        f = _load(tl.load(at_forget), forget_code, _offsets(at_forget, row, column, r, c), mask, ACC)
        g = _load(tl.load(at_retain), retain_code, _offsets(at_retain, row, column, r, c), mask, ACC)
        theta_sum += t * t
        forget_sum += f * f
        retain_sum += g * g
        cross_sum += f * g
    cross = tl.sum(cross_sum.to(tl.float64))
    # an absent gradient is zero even where the other one is infinite
    cross = tl.where((forget_code < 0) | (retain_code < 0), 0.0, cross)
    partials += tile * 4
    tl.store(partials, tl.sum(theta_sum.to(tl.float64)))
    tl.store(partials + 1, tl.sum(forget_sum.to(tl.float64)))
    tl.store(partials + 2, tl.sum(retain_sum.to(tl.float64)))
    tl.store(partials + 3, cross)


@triton.jit
def unit_sums(partials, unit_offsets, unit_tiles, out, BLOCK: tl.constexpr):
    """out[unit] = its tiles' partial sums, added in one fixed order."""
    unit = tl.program_id(0).to(tl.int64)
    begin = tl.load(unit_offsets + unit)
    end = tl.load(unit_offsets + unit + 1)
    which = tl.arange(0, 4)
    total = tl.zeros((BLOCK, 4), dtype=tl.float64)
    for start in range(begin, end, BLOCK):
        k = start + tl.arange(0, BLOCK)
        inside = k < end
        member = tl.load(unit_tiles + k, mask=inside, other=0)
        total += tl.load(partials + member[:, None] * 4 + which[None, :], mask=inside[:, None], other=0.0)
    tl.store(out + unit * 4 + which, tl.sum(total, axis=0))


_tables: OrderedDict[tuple, torch.Tensor] = OrderedDict()


def describe(tensor: torch.Tensor, kept: list[torch.Tensor]) -> tuple[int, int, int, int]:
    """A tensor's row in the table. One whose dims 1.. have no common stride is copied, and the copy kept in `kept`."""
    if tensor.numel() == 0:
        return 0, ABSENT, 0, 0
    rows = tensor.shape[0] if tensor.dim() else 1
    try:
        matrix = tensor.view(rows, tensor.numel() // rows)
    except RuntimeError:
        matrix = tensor.reshape(rows, tensor.numel() // rows)
        kept.append(matrix)
    return matrix.data_ptr(), CODES[tensor.dtype], matrix.stride(0), matrix.stride(1)


def device_table(rows: list[tuple[int, int, int, int]], device: torch.device) -> torch.Tensor:
    key = (device, tuple(rows))
    table = _tables.get(key)
    if table is None:
        host = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda")
        table = _tables[key] = host.to(device, non_blocking=True)
        while len(_tables) > _KEPT_TABLES:
            _tables.popitem(last=False)
    else:
        _tables.move_to_end(key)
    return table


def segment_stats(theta: list[torch.Tensor], g_forget: list[torch.Tensor], g_retain: list[torch.Tensor],
                  tiles: torch.Tensor, unit_offsets: torch.Tensor, unit_tiles: torch.Tensor) -> torch.Tensor:
    """float64 [U, 4]; see razor_fast.ops.segment_stats. CPU tensors are served only under TRITON_INTERPRET=1."""
    device = tiles.device
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("the Triton kernel was given CPU tensors; set TRITON_INTERPRET=1 before importing triton to "
                           "interpret it, or call torch.ops.razor_fast.segment_stats, which picks the kernel by device")
    units = unit_offsets.shape[0] - 1
    kept: list[torch.Tensor] = []
    rows = [describe(tensor, kept) for group in (theta, g_forget, g_retain) for tensor in group]
    wide = any(row[1] == CODES[torch.float64] for row in rows)
    partials = torch.empty((tiles.shape[0], 4), dtype=torch.float64, device=device)
    sums = torch.empty((units, 4), dtype=torch.float64, device=device)
    with torch.cuda.device(device if device.type == "cuda" else -1):
        if tiles.shape[0]:
            table = device_table(rows, device)
            tile_sums[(tiles.shape[0],)](table, tiles.contiguous(), partials, len(theta),
                                         ACC=tl.float64 if wide else tl.float32, BLOCK=BLOCK, num_warps=WARPS)
        if units:
            unit_sums[(units,)](partials, unit_offsets.contiguous(), unit_tiles.contiguous(), sums, BLOCK=UNIT_BLOCK,
                                num_warps=4)
    return sums
