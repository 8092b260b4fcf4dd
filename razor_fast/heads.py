"""Head maps: which rectangles of which parameters belong to which attention head, one map per architecture.

A map recognises a module by the qualified name of the class that defines its `forward`, so nothing is imported that the
caller has not imported, and a subclass that computes attention its own way is not mistaken for its parent. It returns
pieces: rectangles of the module's own parameters in the matrix view [dim 0, the rest]. Names, filters, towers and tied
weights are the business of units.py.

What belongs to a head: its rows of the query, key and value projections with their biases, and its *columns* of the
output projection. The output bias is added once for all heads and belongs to none, as do norms that all heads share.

This room calls torch only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


class HeadMapError(ValueError):
    """A module of a known class does not have the layout its map expects. Caught in units.py, which reports it."""


class Piece(NamedTuple):
    """A rectangle of one parameter. `weight` is set for biases and scales: the weight they go with."""

    tensor: torch.Tensor
    row: int
    rows: int
    column: int
    columns: int
    weight: torch.Tensor | None = None


class Head(NamedTuple):
    """One unit to be: `label` follows the module path in its name ("head.3"); `index` counts within the module.

    With grouped queries the keys and values that several query heads share are a unit of their own, labelled "kv.<j>".
    """

    label: str
    index: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class HeadMap:
    """How the heads of one kind of attention module lie in its parameters.

    architecture: the name in docs/units.md. classes: regular expressions on "module.Class" of the class that defines
    `forward`. read: the module's heads; raises HeadMapError where the layout is not the one expected.
    """

    architecture: str
    classes: tuple[str, ...]
    read: Callable[[nn.Module], list[Head]]

    def knows(self, qualified: str) -> bool:
        return any(re.fullmatch(pattern, qualified) for pattern in self.classes)


REGISTRY: list[HeadMap] = []


def register(architecture: str, *classes: str):
    """Add the decorated function `read(module) -> list[Head]` to the registry; see docs/units.md for an example."""

    def add(read: Callable[[nn.Module], list[Head]]):
        if any(known.architecture == architecture for known in REGISTRY):
            raise ValueError(f"a head map named {architecture!r} is already registered; choose another name")
        REGISTRY.append(HeadMap(architecture, classes, read))
        return read

    return add


def find_map(module: nn.Module) -> HeadMap | None:
    """The map that knows this module, or None. Maps registered last are asked first, so a caller can override ours."""
    owner = next(base for base in type(module).__mro__ if "forward" in vars(base))
    qualified = f"{owner.__module__}.{owner.__qualname__}"
    return next((known for known in reversed(REGISTRY) if known.knows(qualified)), None)


class Projection(NamedTuple):
    """A linear map of which heads own equal, consecutive blocks of rows, from row `start` of the weight on.

    The blocks of the bias start at `bias_start`, where the bias is fused with others and the weight is not, or the
    other way round; None: where those of the weight start.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    start: int = 0
    bias_start: int | None = None


def linear(module: nn.Module, start: int = 0) -> Projection:
    return Projection(module.weight, module.bias, start)


def split_heads(
    queries: int,
    size: int,
    q: Projection | None,
    k: Projection,
    v: Projection,
    out: torch.Tensor | None,
    *,
    groups: int | None = None,
    gate: Projection | None = None,
) -> list[Head]:
    """Heads of an attention whose projections are cut in equal blocks, head after head.

    Args:
        queries: number of (query) heads. size: rows of one head.
        q, k, v: projections; q is None where the query is not projected. Together they must use up every row of the
            weights they name.
        out: weight of the output projection, [anything, queries * size], or None where there is none.
        groups: number of key/value heads, when fewer than query heads (grouped-query attention).
        gate: a projection whose rows multiply the outputs of the query heads, block by block.

    Raises:
        HeadMapError: the shapes are not those of such an attention.
    """
    groups = queries if groups is None else groups
    if queries < 1 or size < 1 or groups < 1 or queries % groups:
        raise HeadMapError(f"{queries} query heads of size {size} on {groups} key/value heads do not divide evenly")
    counts = [(p, n) for p, n in ((q, queries), (k, groups), (v, groups), (gate, queries)) if p is not None]
    covered: dict[int, int] = {}
    for projection, count in counts:
        covered[id(projection.weight)] = covered.get(id(projection.weight), 0) + count * size
    for projection, _ in counts:
        shape, rows = tuple(projection.weight.shape), covered[id(projection.weight)]
        if len(shape) != 2 or shape[0] != rows:
            raise HeadMapError(f"a projection has shape {shape}, expected {rows} rows for heads of size {size}")
    if out is not None and (out.dim() != 2 or out.shape[1] != queries * size):
        raise HeadMapError(f"the output projection has shape {tuple(out.shape)}, expected {queries * size} columns")

    def block(projection: Projection | None, index: int) -> list[Piece]:
        if projection is None:
            return []
        first = projection.start + index * size
        pieces = [Piece(projection.weight, first, size, 0, projection.weight.shape[1])]
        if projection.bias is not None:
            start = projection.start if projection.bias_start is None else projection.bias_start
            pieces.append(Piece(projection.bias, start + index * size, size, 0, 1, projection.weight))
        return pieces

    heads = []
    for index in range(queries):
        pieces = block(q, index)
        if groups == queries:
            pieces += block(k, index) + block(v, index)
        pieces += block(gate, index)
        if out is not None:
            pieces.append(Piece(out, 0, out.shape[0], index * size, size))
        heads.append(Head(f"head.{index}", index, tuple(pieces)))
    if groups != queries:
        heads += [Head(f"kv.{index}", index, tuple(block(k, index) + block(v, index))) for index in range(groups)]
    return heads


def _fused(weight: torch.Tensor, bias: torch.Tensor | None, width: int) -> tuple[Projection, Projection, Projection]:
    return Projection(weight, bias, 0), Projection(weight, bias, width), Projection(weight, bias, 2 * width)


def _own(head: Head, piece: Piece) -> Head:
    return head._replace(pieces=(*head.pieces, piece))


@register("torch.nn.MultiheadAttention", r"torch\.nn\.modules\.activation\.MultiheadAttention")
def _torch(module: nn.Module) -> list[Head]:
    width, size, bias = module.embed_dim, module.head_dim, module.in_proj_bias
    if module.in_proj_weight is not None:
        q, k, v = _fused(module.in_proj_weight, bias, width)
    else:
        # Keys and values of another width: three weights, but still one fused bias.
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        q, k, v = (Projection(weight, bias, 0, place * width) for place, weight in enumerate(weights))
    heads = split_heads(module.num_heads, size, q, k, v, module.out_proj.weight)
    for learned, projection in ((module.bias_k, k), (module.bias_v, v)):
        if learned is not None:  # [1, 1, E]: one key (value) more, one block of columns a head
            heads = [_own(h, Piece(learned, 0, 1, h.index * size, size, projection.weight)) for h in heads]
    return heads


@register("open_clip Attention (custom text and vision blocks)", r"open_clip\.transformer\.Attention")
def _open_clip(module: nn.Module) -> list[Head]:
    width = module.num_heads * module.head_dim
    q, k, v = _fused(module.in_proj_weight, module.in_proj_bias, width)
    heads = split_heads(module.num_heads, module.head_dim, q, k, v, module.out_proj.weight)
    scale = getattr(module, "head_scale", None)
    if scale is None:
        return heads
    # [heads, 1, 1]: the factor of one head's output is the head's own, and goes with its output columns.
    return [_own(head, Piece(scale, head.index, 1, 0, 1, module.out_proj.weight)) for head in heads]


@register(
    "open_clip / OpenAI CLIP AttentionPool2d (ResNet towers)",
    r"(open_clip\.modified_resnet|clip\.model)\.AttentionPool2d",
)
def _attention_pool_2d(module: nn.Module) -> list[Head]:
    q, k, v = linear(module.q_proj), linear(module.k_proj), linear(module.v_proj)
    size = module.q_proj.weight.shape[0] // module.num_heads
    return split_heads(module.num_heads, size, q, k, v, module.c_proj.weight)


@register(
    "transformers CLIP, SigLIP, SigLIP 2",
    r"transformers\.models\.(clip|siglip|siglip2)\.modeling_\w+\.(CLIP|Siglip|Siglip2)(Sdpa|Flash)?Attention2?",
)
def _transformers_clip(module: nn.Module) -> list[Head]:
    q, k, v = linear(module.q_proj), linear(module.k_proj), linear(module.v_proj)
    return split_heads(module.num_heads, module.head_dim, q, k, v, module.out_proj.weight)


@register(
    "transformers BERT, RoBERTa, XLM-RoBERTa",
    r"transformers\.models\.(bert|roberta|xlm_roberta)\.modeling_\w+\.(Bert|Roberta|XLMRoberta)Attention",
)
def _transformers_bert(module: nn.Module) -> list[Head]:
    inner = module.self
    q, k, v = linear(inner.query), linear(inner.key), linear(inner.value)
    return split_heads(inner.num_attention_heads, inner.attention_head_size, q, k, v, module.output.dense.weight)


@register("timm Attention (ViT, DeiT)", r"timm\.(layers\.attention|models\.vision_transformer)\.Attention")
def _timm(module: nn.Module) -> list[Head]:
    size, width = module.head_dim, module.num_heads * module.head_dim
    q, k, v = _fused(module.qkv.weight, module.qkv.bias, width)
    gate = getattr(module, "gate", None)
    gate = None if gate is None else linear(gate)
    return split_heads(module.num_heads, size, q, k, v, module.proj.weight, gate=gate)


@register(
    "timm AttentionRope, EvaAttention (EVA, PE-Core, DINOv3)",
    r"timm\.layers\.attention\.AttentionRope|timm\.models\.eva\.(EvaAttention|AttentionRope)",
)
def _timm_rope(module: nn.Module) -> list[Head]:
    size, width = module.head_dim, module.num_heads * module.head_dim
    if module.qkv is not None:
        q, k, v = _fused(module.qkv.weight, module.qkv.bias, width)
        if getattr(module, "q_bias", None) is not None:  # EVA has no key bias
            q, v = q._replace(bias=module.q_bias, bias_start=0), v._replace(bias=module.v_bias, bias_start=0)
    else:
        q, k, v = linear(module.q_proj), linear(module.k_proj), linear(module.v_proj)
    gate = getattr(module, "gate", None)
    gate = None if gate is None else linear(gate)
    groups = getattr(module, "num_kv_heads", None)
    return split_heads(module.num_heads, size, q, k, v, module.proj.weight, groups=groups, gate=gate)


@register("timm AttentionPoolLatent (SigLIP ViT pooling)", r"timm\.layers\.attention_pool\.AttentionPoolLatent")
def _timm_pool(module: nn.Module) -> list[Head]:
    width = module.num_heads * module.head_dim
    q = linear(module.q) if isinstance(module.q, nn.Linear) else None
    k, v = linear(module.kv), linear(module.kv, width)
    out = module.proj.weight if isinstance(module.proj, nn.Linear) else None
    return split_heads(module.num_heads, module.head_dim, q, k, v, out)


@register(
    "transformers Llama, Mistral, Qwen2 (grouped queries)",
    r"transformers\.models\.(llama|mistral|qwen2)\.modeling_\w+\.(Llama|Mistral|Qwen2)(Sdpa|Flash)?Attention2?",
)
def _transformers_llama(module: nn.Module) -> list[Head]:
    q, k, v = linear(module.q_proj), linear(module.k_proj), linear(module.v_proj)
    queries, groups = module.config.num_attention_heads, module.config.num_key_value_heads
    return split_heads(queries, module.head_dim, q, k, v, module.o_proj.weight, groups=groups)


@register("diffusers Attention (UNets, autoencoders)", r"diffusers\.models\.attention_processor\.Attention")
def _diffusers(module: nn.Module) -> list[Head]:
    others = ("add_q_proj", "add_k_proj", "to_add_out", "to_qkv", "to_kv")
    extra = [name for name in others if getattr(module, name, None) is not None]
    if extra:
        raise HeadMapError(f"joint or fused projections ({', '.join(extra)}) are not mapped")
    q, k, v = linear(module.to_q), linear(module.to_k), linear(module.to_v)
    return split_heads(module.heads, module.inner_dim // module.heads, q, k, v, module.to_out[0].weight)


# Names under which attention modules keep their projections, whatever the class is called.
_PROJECTIONS = (
    {"q", "k", "v"}, {"q_proj", "k_proj", "v_proj"}, {"to_q", "to_k", "to_v"}, {"query", "key", "value"},
    {"q_lin", "k_lin", "v_lin"}, {"wq", "wk", "wv"}, {"qkv"}, {"qkv_proj"}, {"to_qkv"}, {"Wqkv"}, {"c_attn"},
    {"query_key_value"}, {"in_proj_weight"}, {"q", "kv"}, {"to_q", "to_kv"},
)  # fmt: skip


def looks_like_attention(module: nn.Module) -> bool:
    """Whether a module that no map knows is probably attention: by its class name, or by what it holds."""
    if next(module.parameters(), None) is None:
        return False
    if re.search(r"attention|attn", type(module).__name__, re.IGNORECASE):
        return True
    held = {name for name, _ in module.named_children()} | {name for name, _ in module.named_parameters(recurse=False)}
    return any(names <= held for names in _PROJECTIONS)
