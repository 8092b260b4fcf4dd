"""What is timed: for each operator its shapes, the providers to compare, the baseline among them, and the gate.

A gate compares what a provider returns with the float64 reference and returns None or what is wrong. All inputs are random;
zeros would flatter the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks import shapes
from benchmarks.habits import salun, slug, ssd
from razor_fast import ops, reference
from razor_fast.matrix import matrix_shape
from razor_fast.plan import Plan

HEAD_WIDTH = 64  # of every CLIP model of open_clip that is timed here


@dataclass
class Provider:
    """run() does the timed work; gate() looks at its last result; bytes_moved is what the work has to read and write.

    rounds: at most so many timings, for what takes many seconds; None for as many as asked.
    """

    run: Callable[[], object]
    gate: Callable[[object], str | None]
    bytes_moved: int
    rounds: int | None = None


@dataclass
class Case:
    name: str
    providers: dict[str, Provider]
    baselines: dict[str, str] = field(default_factory=dict)  # provider -> what its bar compares it with


class Model:
    """The parameter shapes of an open_clip model, its layers and its heads; random tensors of them on `device`."""

    def __init__(self, name: str, device: str = "cpu"):
        self.name, self.device = name, torch.device(device)
        self.parameters = shapes.of(name)
        self.index = {n: i for i, n in enumerate(self.parameters)}
        self.shapes = [matrix_shape(s) for s in self.parameters.values()]
        self.elements = sum(r * c for r, c in self.shapes)
        self.heads: dict[str, list[tuple[str, int, int, int, int]]] = {}
        for n, shape in self.parameters.items():
            if not n.endswith(".in_proj_weight"):
                continue
            root, width = n.removesuffix("in_proj_weight"), shape[1]
            for h in range(width // HEAD_WIDTH):
                rows = [k * width + h * HEAD_WIDTH for k in range(3)]
                self.heads[f"{root}head_{h}"] = (
                    [(n, r, HEAD_WIDTH, 0, width) for r in rows]
                    + [(root + "in_proj_bias", r, HEAD_WIDTH, 0, 1) for r in rows]
                    + [(root + "out_proj.weight", 0, width, h * HEAD_WIDTH, HEAD_WIDTH)])

    def plan(self, *, layers: bool, heads: bool) -> Plan:
        slices, group = [], []
        if layers:
            for i, (rows, columns) in enumerate(self.shapes):
                slices.append((len(group), i, 0, rows, 0, columns))
                group.append(0)
        if heads:
            for head in self.heads.values():
                slices += [(len(group), self.index[name], *place) for name, *place in head]
                group.append(1)
        return Plan.compile(self.shapes, slices, len(group), group).to(self.device)

    def tensors(self, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {n: torch.randn(s, generator=generator).to(self.device) for n, s in self.parameters.items()}


def _sums_gate(want: Tensor, tolerance: float) -> Callable[[Tensor], str | None]:
    scale = want.clone()
    scale[:, 3] = (want[:, 1] * want[:, 2]).sqrt()

    def gate(sums) -> str | None:
        error = ((sums.double().cpu() - want).abs() / scale).max().item()
        return None if error <= tolerance else f"relative error {error:.1e} exceeds {tolerance:.1e}"

    return gate


def _norms_gate(want: Tensor) -> Callable[[dict], str | None]:
    check = _sums_gate(want, 1e-2)  # naive fp32 norms of long vectors are this far off

    def gate(scores: dict) -> str | None:
        norms, cosine = torch.tensor(list(scores.values()), dtype=torch.float64).split([3, 1], dim=1)
        return check(torch.cat([norms**2, cosine * norms[:, 1:2] * norms[:, 2:3]], 1))

    return gate


def segment_stats(model: Model) -> Case:
    """Scores of every layer, and of every layer and head, from theta, g_forget and g_retain."""
    groups = [model.tensors(seed) for seed in (1, 2, 3)]
    lists = [list(g.values()) for g in groups]
    layers, both = model.plan(layers=True, heads=False), model.plan(layers=True, heads=True)
    want = reference.segment_stats(*lists, both.tiles, both.unit_offsets, both.unit_tiles).cpu()
    count = layers.unit_count
    everything = 3 * 4 * model.elements

    def foreach():
        theta, forget, retain = lists
        cross = torch._foreach_mul(forget, retain)
        return torch.stack([torch.stack(torch._foreach_norm(theta)) ** 2, torch.stack(torch._foreach_norm(forget)) ** 2,
                            torch.stack(torch._foreach_norm(retain)) ** 2, torch.stack([c.sum() for c in cross])], 1)

    def eager():
        theta, forget, retain = lists
        return torch.stack([torch.stack([(t * t).sum(), (f * f).sum(), (r * r).sum(), (f * r).sum()])
                            for t, f, r in zip(theta, forget, retain)])

    def habit():
        return {**slug.score_layers(*groups), **slug.score_heads(*groups, model.heads)}

    return Case("layers and heads", {
        "slug_habit_layers": Provider(lambda: slug.score_layers(*groups), _norms_gate(want[:count]), everything),
        "slug_habit_layers_heads": Provider(habit, _norms_gate(want), everything),
        "eager_layers": Provider(eager, _sums_gate(want[:count], 1e-2), everything),
        "foreach_layers": Provider(foreach, _sums_gate(want[:count], 1e-2), everything),
        "razor_fast_layers": Provider(lambda: ops.segment_stats(*lists, layers), _sums_gate(want[:count], 2e-6), everything),
        "razor_fast_layers_heads": Provider(lambda: ops.segment_stats(*lists, both), _sums_gate(want, 2e-6), everything),
    }, {"slug_habit_layers": "slug_habit_layers", "eager_layers": "slug_habit_layers", "foreach_layers": "slug_habit_layers",
        "razor_fast_layers": "slug_habit_layers", "slug_habit_layers_heads": "slug_habit_layers_heads",
        "razor_fast_layers_heads": "slug_habit_layers_heads"})


def _bits_gate(want) -> Callable[[object], str | None]:
    def gate(found) -> str | None:
        found, expected = ([x] if isinstance(x, Tensor) else list(x) for x in (found, want))
        return None if all(torch.equal(a, b) for a, b in zip(found, expected)) else "not bit for bit the reference"

    return gate


def _all_heads(model: Model):
    plan = model.plan(layers=False, heads=True)
    theta = model.tensors(1)
    lists = list(theta.values())
    return plan, theta, lists, reference.segment_gather(lists, plan.tiles, plan.elements, torch.float32)


def segment_gather(model: Model) -> Case:
    """The slices of every head into one flat buffer."""
    plan, theta, lists, want = _all_heads(model)
    return Case("all heads", {
        "eager": Provider(lambda: torch.cat([slug._slices(theta, head) for head in model.heads.values()]),
                          lambda found: None if found.numel() == want.numel() else "another length", 8 * plan.elements),
        "razor_fast": Provider(lambda: ops.segment_gather(lists, plan), _bits_gate(want), 8 * plan.elements),
    }, {"eager": "eager", "razor_fast": "eager"})


def segment_scatter_(model: Model) -> Case:
    """One flat buffer back into the slices of every head."""
    plan, theta, lists, flat = _all_heads(model)
    want = [t.clone() for t in lists]

    def eager():
        position = 0
        for head in model.heads.values():
            for name, row, rows, column, columns in head:
                target = theta[name].view(theta[name].shape[0], -1)[row : row + rows, column : column + columns]
                target.copy_(flat[position : position + rows * columns].view(rows, columns))
                position += rows * columns
        return lists

    def ours():
        ops.segment_scatter_(lists, flat, plan)
        return lists

    return Case("all heads", {"eager": Provider(eager, _bits_gate(want), 8 * plan.elements),
                              "razor_fast": Provider(ours, _bits_gate(want), 8 * plan.elements)},
                {"eager": "eager", "razor_fast": "eager"})


def segment_update_(model: Model) -> Case:
    """A probe: every head stepped from its base along the forget and retain gradients."""
    plan, theta, lists, base = _all_heads(model)
    gradients = [model.tensors(seed) for seed in (2, 3)]
    flat = [ops.segment_gather(list(g.values()), plan) for g in gradients]
    eta = torch.full((plan.unit_count,), 1e-3, dtype=torch.float64, device=model.device)
    origin = {n: t.clone() for n, t in theta.items()}
    want = [t.clone() for t in lists]
    reference.segment_update_(want, base, *flat, base.new_empty(0), plan.tiles, eta, -0.5, 1.0, 0.0)
    numbers = dict.fromkeys(model.heads, 1e-3)

    def eager():
        slug.step(theta, origin, gradients, [-0.5, 1.0], model.heads, numbers)
        return lists

    def ours():
        ops.segment_update_(lists, base, *flat, None, plan, eta, c_forget=-0.5, c_retain=1.0)
        return lists

    def close(found) -> str | None:
        return None if all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, want)) else "not the step"

    return Case("all heads", {"eager": Provider(eager, close, 16 * plan.elements),
                              "razor_fast": Provider(ours, _bits_gate(want), 16 * plan.elements)},
                {"eager": "eager", "razor_fast": "eager"})


def _lists(model: Model, *seeds: int) -> list[list[Tensor]]:
    return [list(model.tensors(seed).values()) for seed in seeds]


def square_accumulate_(model: Model) -> Case:
    """One batch's squared gradients added to the importance of every parameter."""
    gradients, = _lists(model, 1)
    want = [torch.zeros_like(g) for g in gradients]
    reference.square_accumulate_(want, gradients, 0.5)
    kept = [torch.zeros_like(g) for g in gradients]

    def fresh(run):  # the gate looks at the first run, on zeros; later runs add on and on
        run(kept)
        return kept

    def foreach(kept):
        torch._foreach_addcmul_(kept, gradients, gradients, value=0.5)

    def close(found) -> str | None:
        wrong = any(not torch.allclose(a, b, rtol=1e-6, atol=1e-12) for a, b in zip(found, want))
        for a in found:
            a.zero_()
        return "not the sums of squares" if wrong else None

    def bits(found) -> str | None:
        wrong = _bits_gate(want)(found)
        for a in found:
            a.zero_()
        return wrong

    moved = 12 * model.elements
    return Case("all parameters", {
        "ssd_habit": Provider(lambda: fresh(lambda kept: ssd.accumulate(kept, gradients, 0.5)), close, moved),
        "foreach": Provider(lambda: fresh(foreach), close, moved),
        "razor_fast": Provider(lambda: fresh(lambda kept: ops.square_accumulate_(kept, gradients, 0.5)), bits, moved),
    }, {name: "ssd_habit" for name in ("ssd_habit", "foreach", "razor_fast")})


def dampen_(model: Model) -> Case:
    """Every parameter dampened where it matters more to the forget set; alpha = 10 chooses about every fifth element."""
    base, *importance = _lists(model, 1, 2, 3)
    for tensor in (*importance[0], *importance[1]):
        tensor.square_()
    want = [t.clone() for t in base]
    reference.dampen_(want, *importance, 10.0, 1.0)
    theta = [t.clone() for t in base]

    def on(run):
        run()
        return theta

    def gate(same):
        def look(found) -> str | None:
            wrong = None if all(same(a, b) for a, b in zip(found, want)) else "not dampened as the reference does"
            for a, b in zip(found, base):
                a.copy_(b)
            return wrong

        return look

    moved = 16 * model.elements
    return Case("all parameters", {
        "ssd_habit": Provider(lambda: on(lambda: ssd.dampen(theta, *importance, 10.0, 1.0)), gate(torch.allclose), moved),
        "razor_fast": Provider(lambda: on(lambda: ops.dampen_(theta, *importance, alpha=10.0, dampening=1.0)),
                               gate(torch.equal), moved),
    }, {"ssd_habit": "ssd_habit", "razor_fast": "ssd_habit"})


def magnitude_threshold(model: Model) -> Case:
    """The threshold that keeps half of all gradient elements, as SalUn does by default."""
    gradients, = _lists(model, 1)
    k = model.elements // 2
    want = reference.magnitude_threshold(gradients, k)
    moved = 4 * model.elements

    def concatenate_and_sort():
        return torch.cat([g.flatten() for g in gradients]).abs_().sort(descending=True).values[k - 1]

    return Case("all parameters", {
        "salun_habit": Provider(lambda: salun.threshold(gradients, k), _bits_gate(want), moved, rounds=1),
        "sort": Provider(concatenate_and_sort, _bits_gate(want), moved, rounds=1),
        "razor_fast": Provider(lambda: ops.magnitude_threshold(gradients, k), _bits_gate(want), moved),
    }, {"salun_habit": "salun_habit", "sort": "salun_habit", "razor_fast": "sort"})


BENCHMARKS: dict[str, Callable[[Model], Case]] = {
    "segment_stats": segment_stats,
    "segment_gather": segment_gather,
    "segment_scatter_": segment_scatter_,
    "segment_update_": segment_update_,
    "square_accumulate_": square_accumulate_,
    "dampen_": dampen_,
    "magnitude_threshold": magnitude_threshold,
}
