"""Jobs for tests/ranks.py: every architecture inside every way of sharding, beside the same model whole in float64."""

from __future__ import annotations

import copy
import functools

import models
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode

import razor_fast as rf
from razor_fast import ops

VLMS = ("llava", "llava siglip", "next", "vip")
PIPELINES = ("sd", "sdxl", "sd3", "flux")
ARCHITECTURES = (*models.SMALL, *VLMS, *PIPELINES)


def _clip_outputs(model):
    dtype = next(model.parameters()).dtype
    images, ids = models.images(model).to(dtype), models.tokens(model)
    named = hasattr(getattr(model, "module", model), "get_image_features")
    found = model(input_ids=ids, pixel_values=images) if named else model(images, ids)
    if hasattr(found, "image_embeds"):
        return [found.image_embeds, found.text_embeds]
    return [found["image_features"], found["text_features"]] if isinstance(found, dict) else list(found[:2])


@functools.cache
def _question_inputs(kind):
    import vlms

    processor = vlms.build_processor(kind)
    asked = vlms.questions(each=1)["forget"]
    text = [f"USER: <image> {q.question} ASSISTANT: {q.answer}" for q in asked]
    inputs = processor(images=[q.image.image for q in asked], text=text, return_tensors="pt")
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


def _draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _denoised(kind, model):
    if kind in ("sd", "sdxl"):
        added = {"text_embeds": _draw(2, 32), "time_ids": _draw(2, 6)} if kind == "sdxl" else None
        width = 32 if kind == "sd" else 64
        return model(_draw(2, 4, 8, 8), torch.tensor([3, 7]), _draw(2, 5, width), added_cond_kwargs=added).sample
    if kind == "sd3":
        return model(_draw(2, 4, 8, 8), _draw(2, 5, 64), _draw(2, 64), torch.tensor([3, 7])).sample
    ids = torch.zeros(16, 3, dtype=torch.float64)
    return model(
        _draw(2, 16, 16), _draw(2, 5, 32), _draw(2, 32), torch.tensor([0.3, 0.7], dtype=torch.float64), ids, ids[:5],
        torch.ones(2, dtype=torch.float64),
    ).sample  # fmt: skip


def outputs(name, model):
    """What a forward pass of the whole model gives: a list of tensors."""
    if name in VLMS:
        return [model(**_question_inputs(name)).logits]
    if name in PIPELINES:
        return [_denoised(name, model)]
    if name == "timm vit":
        return [model(models.images(model).double())]
    return _clip_outputs(model)


@functools.cache
def built(name):
    """A model in float64, shared: copy it to wrap it."""
    if name in VLMS:
        import vlms

        return vlms.build_model(name).double()
    if name in PIPELINES:
        import pipelines

        components = pipelines.make_pipeline(name).components
        return components["unet" if "unet" in components else "transformer"].double().eval()
    return models.SMALL[name]().double()


def losses(name, model):
    """(forget, retain): two callables that run the model."""
    return (
        lambda: sum((o * (1 + torch.arange(o.shape[-1]) % 3)).mean() for o in outputs(name, model)),
        lambda: sum(o.square().mean() + 0.1 * o.mean() for o in outputs(name, model)),
    )


def blocks(model):
    """The modules that training stacks shard one by one: the members of every outermost ModuleList, or Sequential of blocks."""
    found = [m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential)) and len(m) > 1]
    members = [child for m in found for child in m if any(True for _ in child.parameters())]
    return [m for m in members if not any(m in outer.modules() for outer in members if outer is not m)]


def shard(model, mesh, **options):
    scalars = {p for p in model.parameters() if p.dim() == 0}  # fully_shard refuses them: every rank keeps its own
    options["ignored_params"] = scalars
    for block in blocks(model):
        if not isinstance(block, nn.ModuleList):
            fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def parallel(model, mesh):
    """Tensor parallelism over every nn.Linear that is called as a module: column-wise and row-wise in turn, with whole
    tensors between them, so that any architecture can be cut."""
    functional = ("MultiheadAttention", "AttentionPool2d", "CustomResidualAttentionBlock")  # use weights, call no Linear
    skipped = {id(child) for m in model.modules() if type(m).__name__ in functional for child in m.children()}
    linears = [n for n, m in model.named_modules() if type(m) is nn.Linear and id(m) not in skipped]
    plan = {}
    for index, name in enumerate(linears):
        column = ColwiseParallel(output_layouts=Replicate())
        plan[name] = column if index % 2 == 0 else RowwiseParallel(input_layouts=Replicate())
    return parallelize_module(model, mesh, plan)


def wrap(stack, model):
    """The model inside a training stack, over all ranks."""
    size = dist.get_world_size()
    if stack == "ddp":
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, find_unused_parameters=True)
    if stack in ("fsdp+tp", "hsdp"):
        mesh = init_device_mesh("cpu", (size // 2, 2) if size > 1 else (1, 1), mesh_dim_names=("data", "inner"))
        if stack == "hsdp":
            return shard(model, mesh)
        return shard(parallel(model, mesh["inner"]), mesh["data"])
    mesh = init_device_mesh("cpu", (size,))
    if stack == "tp":
        return parallel(model, mesh)
    options = {
        "fsdp": {},
        "fsdp kept": {"reshard_after_forward": False},
        "fsdp mixed": {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)},
        "fsdp offload": {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
    }[stack]
    return shard(model, mesh, **options)


def scored(name, stack, exclude=()):
    """Scores of an architecture inside a stack and whole: (largest relative difference, same units chosen, bits, sums)."""
    whole = copy.deepcopy(built(name))
    want = rf.score(whole, rf.find_units(whole, exclude=exclude), *losses(name, whole))
    model = wrap(stack, copy.deepcopy(built(name)))
    units = rf.find_units(model, exclude=exclude)
    found = rf.score(model, units, *losses(name, model))
    assert [u.name.removeprefix("module.") for u in units] == [u.name for u in want.units]
    assert units.layout.ranks == dist.get_world_size()
    difference = (found.sums - want.sums).abs() / want.sums.abs().clamp_min(want.sums.abs().max(0).values * 1e-9)
    chosen = [
        [n.removeprefix("module.") for n in rf.select(t, "auto").names + rf.select(t, count=5).names]
        for t in (found, want)
    ]
    return difference.max().item(), chosen[0] == chosen[1], found.sums.numpy().tobytes()


class Collectives(TorchDispatchMode):
    """Counts what goes over the process group: (operator, bytes)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.namespace in ("c10d", "_c10d_functional") and "wait" not in str(function):
            tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a]) if isinstance(t, torch.Tensor)]
            self.seen.append((str(function), sum(t.numel() * t.element_size() for t in tensors)))
        return function(*arguments, **(options or {}))


def recorded(stack, name="hf siglip"):
    """The sums of a recorder inside a stack against those of the same gradients, gathered whole, in float64; the collectives
    of the scoring call; and the sums of a second, equal run. Returns (difference, collectives, units, same bits again)."""
    model = wrap(stack, copy.deepcopy(built(name)).float())
    units = rf.find_units(model)
    recorder, gathered = rf.ScoreRecorder(model, units), []
    runs = []
    for _ in range(2):
        recorder.clear()
        for side, loss in zip(("forget", "retain"), losses(name, model)):
            with getattr(recorder, side)():
                loss().backward()
                if not runs:
                    units.wrapping.settle()
                    gathered.append([whole(p.grad, p) for p in units.parameters.values()])
        with Collectives() as collectives:
            runs.append(recorder.scores().sums)
    theta = [whole(p, p) for p in units.parameters.values()]
    want = ops.segment_stats(theta, *gathered, units.plan)
    difference = ((runs[0] - want).abs() / want.abs().clamp_min(1e-20)).max().item()
    return difference, collectives.seen, len(units), runs[0].numpy().tobytes(), torch.equal(*runs)


def whole(tensor, parameter):
    if tensor is None:
        return torch.zeros(parameter.shape, dtype=torch.float64)
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().double()
