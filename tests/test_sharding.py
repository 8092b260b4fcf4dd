"""Scores on DTensor parameters: FSDP2, tensor parallelism, both, DDP, on 1, 2 and 4 gloo processes, against the whole model."""

from __future__ import annotations

import pytest
import ranks
import sharding

pytest.importorskip("torch.distributed.fsdp")


@pytest.fixture(scope="module", params=[1, 2, 4], ids=lambda n: f"{n} ranks")
def world(request):
    with ranks.World(request.param) as found:
        found.size = request.param
        yield found


def agree(results):
    for difference, same_units, bits in results:
        assert difference < 1e-6, difference
        assert same_units
        assert bits == results[0][2]


@pytest.mark.parametrize("name", sharding.ARCHITECTURES)
def test_every_architecture_scores_as_if_whole(world, name):
    for stack in {1: ["fsdp"], 2: ["fsdp", "tp"], 4: ["fsdp+tp"]}[world.size]:
        agree(world.run("sharding:scored", name, stack))


@pytest.mark.parametrize("stack", ["fsdp", "fsdp kept", "fsdp mixed", "fsdp offload", "hsdp", "tp", "fsdp+tp", "ddp"])
def test_sums_are_those_of_gathered_gradients_in_one_all_reduce(world, stack):
    results = world.run("sharding:recorded", stack)
    for difference, collectives, units, bits, again in results:
        assert difference < 1e-6
        assert again and bits == results[0][3]
        [(operator, size)] = collectives
        assert "allreduce" in operator and size == 32 * units
