"""Scores of a model whose parameters are sharded over ranks (FSDP2): every rank sums its own rows, then one all-reduce.

    torchrun --nproc-per-node 2 examples/sharded_scores.py

The four sums of a unit are additive over its elements, so a unit may lie on any number of ranks. Each rank cuts the slices
of all units down to the rows it holds, compiles a plan of its own from them, and adds [units, 4] float64 numbers over the
ranks: 32 bytes a unit are all that travels. The ranks must agree on the units, so find them before sharding.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

import razor_fast as rf
from razor_fast import ops
from razor_fast.matrix import matrix_shape
from razor_fast.plan import Plan


def local_plan(units, parameters):
    """The plan of this rank's rows. parameters: name -> DTensor sharded along dim 0, as fully_shard leaves them."""
    shapes, slices, order = [], [], {name: i for i, name in enumerate(parameters)}
    rows_here = {}
    for name, parameter in parameters.items():
        shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
        rows_here[name] = (offset[0], offset[0] + shape[0])
        shapes.append(matrix_shape(shape))
    for index, unit in enumerate(units):
        for piece in unit.slices:
            first, last = rows_here[piece.parameter]
            top, bottom = max(piece.row, first), min(piece.row + piece.rows, last)
            if top < bottom:
                slices.append((index, order[piece.parameter], top - first, bottom - top, piece.column, piece.columns))
    return Plan.compile(shapes, slices, len(units), [0 if unit.kind == "layer" else 1 for unit in units])


def sharded_sums(units, parameters, g_forget, g_retain):
    """float64 [units, 4], the same on every rank. g_*: name -> DTensor laid out as its parameter."""
    plan = local_plan(units, parameters)
    local = [[tensors[name].to_local() for name in parameters] for tensors in (parameters, g_forget, g_retain)]
    sums = ops.segment_stats(*local, plan)
    dist.all_reduce(sums)
    return sums


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True), 2)
    units = rf.find_units(model)
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)

    torch.manual_seed(1)  # the same batch on every rank; real ranks hold different ones, and FSDP averages the gradients
    batch = torch.randn(8, 5, 48)
    gradients = []
    for loss in (lambda: model(batch).square().mean(), lambda: model(batch).abs().mean()):
        model.zero_grad()
        loss().backward()
        gradients.append({name: p.grad.detach().clone() for name, p in model.named_parameters() if name in units.parameters})
    parameters = {name: p.detach() for name, p in model.named_parameters() if name in units.parameters}
    assert all(isinstance(p, DTensor) for p in parameters.values())
    sums = sharded_sums(units, parameters, *gradients)

    # what one rank with whole tensors finds
    whole = [[tensors[name].full_tensor() for name in units.parameters] for tensors in (parameters, *gradients)]
    want = ops.segment_stats(*whole, units.plan)
    torch.testing.assert_close(sums, want, rtol=1e-6, atol=1e-12)
    if dist.get_rank() == 0:
        print(f"{len(units)} units on {dist.get_world_size()} ranks: the sums of whole tensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
