"""Units: the layers and attention heads of a model, as slices of its parameters.

A *layer* is one whole parameter. A *head* is what belongs to one attention head (see heads/). Both are lists of
rectangles in the matrix view: a parameter of shape [d0, d1, ...] is the matrix [d0, d1*d2*...], [n] is [n, 1] and a
scalar is [1, 1]. Layers and heads are two overlapping partitions of the same weights; which of the two to edit is the
caller's choice, and `Units.subset` refuses to take both of one weight.

Calls heads/ (what a module's heads are) and plan.py (compiling slices to tables); knows nothing of losses or tiles.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn

from .distributed import Cut, Layout, Wrapping, is_sharded, local_tensor
from .errors import ConfigError, ModelError, PlanError, UnknownUnitError
from .heads import Head, HeadMapError, find_map, join_groups, looks_like_attention
from .matrix import matrix_shape
from .places import Places
from .plan import Plan

# Layers only: the biases of a head always go with its weights.
EXCLUDE_BIASES = ("bias", "*.bias", "*_bias", "bias_k", "bias_v", "*.bias_k", "*.bias_v")
EXCLUDE_EMBEDDINGS = (
    "*positional_embedding",
    "*position_embedding.weight",
    "*position_embeddings.weight",
    "*embed_positions.weight",
    "*pos_embed",
    "*relative_position_bias_table",
    "*relative_attention_bias.weight",
    "*token_embedding.weight",
    "*word_embeddings.weight",
    "*token_type_embeddings.weight",
    "*embed_tokens.weight",
    "shared.weight",
    "*.shared.weight",
    "*wte.weight",
    "*wpe.weight",
    "*image_newline",
)
# What knows of the diffusion time step alone (and of a pooled prompt or an image size): its embedding, its projections
# into ResNet blocks, and the modulation (adaLN) of MMDiT blocks. All concepts pass through it alike.
EXCLUDE_TIME = (
    "*time_embedding.*",
    "*time_emb_proj.*",
    "*time_text_embed.*",
    "*add_embedding.*",
    "*.norm1.linear.weight",
    "*.norm1_context.linear.weight",
    "*transformer_blocks.*.norm.linear.weight",
    "*norm_out.linear.weight",
    "*adaln_single.*",
)
# Components of a pipeline that no prompt passes through: they make every picture, or judge it.
EXCLUDE_COMPONENTS = ("vae.*", "image_encoder.*", "safety_checker.*")
EXCLUDE_SCALES = ("logit_scale", "*.logit_scale", "logit_bias", "*.logit_bias")
# As in SLUG: biases outside heads, position and token embeddings, the temperature. Class embeddings stay. And of
# diffusion pipelines, what every concept shares.
DEFAULT_EXCLUDE = EXCLUDE_BIASES + EXCLUDE_EMBEDDINGS + EXCLUDE_SCALES + EXCLUDE_TIME + EXCLUDE_COMPONENTS

EDITABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True, slots=True)
class Slice:
    """A rectangle of a parameter in the matrix view."""

    parameter: str
    row: int
    rows: int
    column: int
    columns: int

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    def overlaps(self, other: Slice) -> bool:
        return (
            self.parameter == other.parameter
            and self.row < other.row + other.rows
            and other.row < self.row + self.rows
            and self.column < other.column + other.columns
            and other.column < self.column + self.columns
        )


@dataclass(frozen=True, slots=True)
class Unit:
    """What is scored, selected and edited: a layer or a head.

    name: the parameter's name, or "<attention module>.head.<i>". tower: "visual", "text", ... or "". block: depth index
    in its tower, None outside the blocks. head: index within its module, None for layers. part: the place within the
    block, such as "attn.in_proj", "mlp.c_fc", "ln_1", "head".
    """

    name: str
    kind: str
    slices: tuple[Slice, ...]
    tower: str = ""
    block: int | None = None
    head: int | None = None
    part: str = ""

    @property
    def elements(self) -> int:
        return sum(piece.elements for piece in self.slices)

    def overlaps(self, other: Unit) -> bool:
        return any(a.overlaps(b) for a in self.slices for b in other.slices)


class Units(Sequence[Unit]):
    """The units of one model, in model order: layers first, then heads.

    parameters: those any unit touches, in model order, each once under its first name. aliases: other names of tied
    parameters -> their first name. skipped: parameters no unit touches -> why. unknown_attention: modules that look
    like attention and that no head map knew.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        parameters: Mapping[str, nn.Parameter],
        *,
        skipped: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        unknown_attention: Sequence[str] = (),
        model_name: str = "",
        wrapping: Wrapping | None = None,
        layout: Layout | None = None,
    ):
        self._units = tuple(units)
        self._index = {unit.name: index for index, unit in enumerate(self._units)}
        if len(self._index) != len(self._units):
            seen: set[str] = set()
            twice = next(unit.name for unit in self._units if unit.name in seen or seen.add(unit.name))
            raise PlanError(f"unit {twice!r} occurs twice; a unit's name must be its own")
        touched = {piece.parameter for unit in self._units for piece in unit.slices}
        missing = sorted(touched - set(parameters))
        if missing:
            raise PlanError(f"units touch parameters that are not there: {', '.join(missing[:3])}")
        self.parameters: dict[str, nn.Parameter] = {n: p for n, p in parameters.items() if n in touched}
        self.skipped = dict(skipped or {})
        self.aliases = dict(aliases or {})
        self.unknown_attention = tuple(unknown_attention)
        self.model_name = model_name
        self.wrapping = wrapping or Wrapping()
        self._layout = None if layout is None else layout.only(self.parameters)
        self._plan = self._table = self._cut = self._held = self._counted = None

    def __len__(self) -> int:
        return len(self._units)

    def __getitem__(self, key):
        if isinstance(key, str):
            return self._units[self.index(key)]
        return self._units[key]

    def __contains__(self, key) -> bool:
        return key in self._index if isinstance(key, str) else key in self._units

    def index(self, key, *args) -> int:
        """Position of a unit, given by name or as the unit itself. Raises UnknownUnitError."""
        name = key.name if isinstance(key, Unit) else key
        if name not in self._index:
            raise UnknownUnitError(f"no unit is named {name!r}; {self._near(str(name))}")
        return self._index[name]

    def _near(self, name: str) -> str:
        import difflib

        close = difflib.get_close_matches(name, self.names, n=3, cutoff=0.6)
        return f"did you mean {', '.join(close)}?" if close else "Units.names lists the names there are"

    @property
    def names(self) -> list[str]:
        return [unit.name for unit in self._units]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Matrix shapes of `parameters`, in the same order."""
        return [matrix_shape(parameter.shape) for parameter in self.parameters.values()]

    @property
    def plan(self) -> Plan:
        """The compiled Plan over all units, of whole parameters, made on first use; layers are group 0, heads group 1."""
        if self._plan is None:
            self._plan = self._compile(self.shapes, self.slice_table)
        return self._plan

    @property
    def slice_table(self) -> np.ndarray:
        """int64 [S, 6], the columns of plan.SLICE_COLUMNS: the slices of whole parameters, unit by unit."""
        if self._table is not None:
            return self._table
        order = {name: index for index, name in enumerate(self.parameters)}
        rows = [
            (index, order[piece.parameter], piece.row, piece.rows, piece.column, piece.columns)
            for index, unit in enumerate(self._units)
            for piece in unit.slices
        ]
        self._table = np.array(rows, np.int64).reshape(-1, 6)
        return self._table

    def _compile(self, shapes: Sequence[tuple[int, int]], table: np.ndarray) -> Plan:
        return Plan.compile(
            shapes,
            table,
            len(self._units),
            [0 if unit.kind == "layer" else 1 for unit in self._units],
            unit_names=self.names,
            parameter_names=list(self.parameters),
        )

    @property
    def layout(self) -> Layout:
        """Where the parameters lie (distributed/). Over several ranks the first use is collective: all must come."""
        if self._layout is None:
            self._layout = Layout.of(self.parameters, self.wrapping, [self.names, self.slice_table.tolist()])
        return self._layout

    @property
    def cut(self) -> Cut:
        """The slices, cut at shard borders: what of them this rank holds."""
        if self._cut is None:
            self._cut = self.layout.cut(self.slice_table)
        return self._cut

    @property
    def held(self) -> Plan:
        """The plan of what this rank holds, in the coordinates of `layout.local(parameters)`: to be read and written."""
        if self._held is None:
            self._held = self.plan if self.layout.group is None else self._compile(self.layout.shapes(), self.cut.slices)
        return self._held

    @property
    def counted(self) -> Plan:
        """As `held`, without what another rank holds too and answers for: sums over it add up over the ranks."""
        if self._counted is None:
            whole = self.layout.group is None
            self._counted = self.plan if whole else self._compile(self.layout.shapes(), self.cut.slices[self.cut.owned])
        return self._counted

    def kinds(self, kind: str) -> list[Unit]:
        """The units of one kind, "layer" or "head"."""
        if kind not in ("layer", "head"):
            raise ConfigError(f"kind must be 'layer' or 'head', got {kind!r}")
        return [unit for unit in self._units if unit.kind == kind]

    def elements(self, name: str) -> int:
        return self[name].elements

    def overlaps(self, a: str | Unit, b: str | Unit) -> bool:
        """Whether two units share elements, as a layer does with the heads in it."""
        return self[self.index(a)].overlaps(self[self.index(b)])

    def subset(self, names: Iterable[str | Unit]) -> Units:
        """The named units, in the order given, with a plan of their own that is free of overlaps.

        Raises:
            UnknownUnitError: a name is not there. PlanError: a name is given twice, or two units share elements
            (a layer and a head in it): edit one or the other.
        """
        chosen = [self[self.index(name)] for name in ([names] if isinstance(names, str) else names)]
        by_parameter: dict[str, list[tuple[Slice, Unit]]] = {}
        for unit in chosen:
            for piece in unit.slices:
                earlier = by_parameter.setdefault(piece.parameter, [])
                for other, owner in earlier:
                    if owner is not unit and piece.overlaps(other):
                        raise PlanError(
                            f"{owner.kind} {owner.name!r} and {unit.kind} {unit.name!r} share elements of "
                            f"{piece.parameter!r}; a subset is edited in place, so choose one of the two"
                        )
                earlier.append((piece, unit))
        return Units(
            chosen,
            self.parameters,
            skipped=self.skipped,
            aliases=self.aliases,
            unknown_attention=self.unknown_attention,
            model_name=self.model_name,
            wrapping=self.wrapping,
            layout=self.layout,
        )

    def on(self, model: nn.Module) -> Units:
        """The same units on another model object of the same architecture (a copy, a reloaded checkpoint).

        Raises ModelError where a parameter is missing or has another shape.
        """
        wrapping = Wrapping.of(model)
        there = dict(model.named_parameters(remove_duplicate=False))
        self._check_shapes(there, model)
        return Units(
            self._units,
            {name: there[name] for name in self.parameters},
            skipped=self.skipped,
            aliases=self.aliases,
            unknown_attention=self.unknown_attention,
            model_name=type(model).__name__,
            wrapping=wrapping,
        )

    def check_model(self, model: nn.Module) -> None:
        """Raise ModelError unless `model` holds the very parameters these units were found on."""
        self.wrapping.settle()
        there = dict(model.named_parameters(remove_duplicate=False))
        self._check_shapes(there, model)
        for name, parameter in self.parameters.items():
            if there[name] is not parameter:
                raise ModelError(
                    f"parameter {name!r} of this {type(model).__name__} is not the one the units were found on; "
                    "use units.on(model), or find_units(model) again"
                )

    def _check_shapes(self, there: Mapping[str, torch.Tensor], model: nn.Module) -> None:
        for name, parameter in self.parameters.items():
            if name not in there:
                raise ModelError(
                    f"this {type(model).__name__} has no parameter {name!r}, which the units of {self.model_name!r} "
                    "touch; pass the model they were found on (a wrapper such as torch.compile or DDP changes names)"
                )
            if there[name].shape != parameter.shape:
                raise ModelError(
                    f"parameter {name!r} has shape {tuple(there[name].shape)}, the units expect "
                    f"{tuple(parameter.shape)}; pass a model of the same architecture"
                )

    def __repr__(self) -> str:
        layers, heads = len(self.kinds("layer")), len(self.kinds("head"))
        millions = sum(p.numel() for p in self.parameters.values()) / 1e6
        text = f"<Units of {self.model_name or 'a model'}: {layers} layers, {heads} heads, "
        text += f"{len(self.parameters)} parameters ({millions:.1f} M), {len(self.skipped)} skipped"
        if self.unknown_attention:
            text += f", {len(self.unknown_attention)} attention modules unknown"
        return text + ">"

    def summary(self) -> str:
        """A table, one line per tower, kind and part: units, blocks and elements."""
        groups: dict[tuple[str, str, str], list[Unit]] = {}
        for unit in self._units:
            groups.setdefault((unit.tower or "-", unit.kind, unit.part or "-"), []).append(unit)
        rows = [("tower", "kind", "part", "blocks", "units", "elements")]
        for key, members in groups.items():
            blocks = [unit.block for unit in members if unit.block is not None]
            span = f"{min(blocks)}-{max(blocks)}" if blocks else "-"
            rows.append((*key, span, str(len(members)), f"{sum(unit.elements for unit in members):,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = []
        for row in rows:
            cells = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join([repr(self), *lines])


def find_units(
    model: nn.Module,
    *,
    layers: bool = True,
    heads: bool = True,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] = DEFAULT_EXCLUDE,
    skip_frozen: bool = True,
    split_groups: bool = False,
    group=None,
) -> Units:
    """The layers and attention heads of a model.

    Args:
        model: any nn.Module with its weights in memory. Names are those of `model.named_parameters()`.
        layers, heads: which kinds to return.
        include: fnmatch patterns on parameter names; where given, only parameters that match one are used.
        exclude: fnmatch patterns on parameter names to leave out, in place of DEFAULT_EXCLUDE (add to it to keep it).
            Its bias patterns, EXCLUDE_BIASES, concern layers only; all others leave the matching slices out of heads
            too. A head's biases go with its weights. A tied parameter goes by all its names.
        skip_frozen: leave out parameters with requires_grad=False, whole layers and slices of heads alike; with False
            they are returned, and refused later where a gradient is needed.
        split_groups: with grouped queries, whether shared keys and values ("kv.<j>") and each query head ("head.<i>")
            are units of their own. By default they are one unit, "group.<j>": keys that move change the output of every
            query head they serve.
        group: the process group of the ranks that hold the model together. By default it is read off DTensor parameters
            (FSDP2, tensor parallelism) and off DDP; every rank then calls with the same arguments, and scoring is
            collective. Give it where the model lies on part of the ranks, or for the module inside DDP.

    Returns:
        Units, layers in model order, then heads in module order. Attention modules without a head map give layers only,
        with one warning, and are listed in `unknown_attention`.

    Raises:
        ModelError: a parameter is on the meta device, flattened by FSDP or shares memory with another, projections are
            fused copies of the weights (diffusers), or nothing is left to edit.
        ConfigError: neither layers nor heads are asked for, or a pattern matches no parameter.
    """
    if not layers and not heads:
        raise ConfigError("layers=False and heads=False leave nothing to find; ask for one of them")
    include = None if include is None else _patterns(include, "include")
    exclude = _patterns(exclude, "exclude")

    wrapping = Wrapping.of(model, group)
    first: dict[str, nn.Parameter] = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in names:
            aliases[name] = names[id(parameter)]
        else:
            names[id(parameter)] = name
            first[name] = parameter
    if not first:
        raise ModelError(f"{type(model).__name__} has no parameters; pass the module that holds the weights")
    meta = [name for name, parameter in first.items() if parameter.is_meta]
    if meta:
        raise ModelError(
            f"{len(meta)} of {len(first)} parameters are on the meta device and hold no values (first: {meta[0]!r}); "
            "load the weights first, for example with low_cpu_mem_usage=False or model.to_empty() and load_state_dict()"
        )
    flat = next((name for name in first if name.endswith("_flat_param")), None)
    if flat is not None:
        raise ModelError(
            f"{flat!r} is a parameter flattened by FSDP, in which layers and heads have lost their shape; find units "
            "before wrapping, or wrap with use_orig_params=True"
        )
    all_names: dict[str, list[str]] = {name: [name] for name in first}
    for alias, name in aliases.items():
        all_names[name].append(alias)
    known = [*first, *aliases]
    for option, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns:
            if pattern not in DEFAULT_EXCLUDE and not any(fnmatchcase(name, pattern) for name in known):
                raise ConfigError(
                    f"{option} pattern {pattern!r} matches no parameter of {type(model).__name__}; patterns are "
                    f"fnmatch patterns on whole names such as {next(iter(first))!r}"
                )

    skipped: dict[str, str] = {}
    usable: dict[str, nn.Parameter] = {}
    for name, parameter in first.items():
        reason = _unusable(parameter, skip_frozen)
        if reason:
            skipped[name] = reason
        else:
            usable[name] = parameter

    def excluded(name: str, patterns: Iterable[str]) -> str | None:
        """The pattern that leaves a parameter out, or None; a tied parameter goes by all its names."""
        return next((p for p in patterns for each in all_names[name] if fnmatchcase(each, p)), None)

    def included(name: str) -> bool:
        return include is None or any(fnmatchcase(each, p) for each in all_names[name] for p in include)

    places = Places(known)
    found: list[Unit] = []
    for name, parameter in usable.items():
        pattern = excluded(name, exclude)
        if pattern is not None:
            skipped[name] = f"excluded by pattern {pattern!r}"
        elif not included(name):
            skipped[name] = "matches no include pattern"
        elif layers:
            rows, columns = matrix_shape(parameter.shape)
            tower, block, part = places.of(name)
            found.append(Unit(name, "layer", (Slice(name, 0, rows, 0, columns),), tower, block, None, part))

    unknown: list[str] = []
    if heads:
        patterns = [pattern for pattern in exclude if pattern not in EXCLUDE_BIASES]
        kept = {name for name in usable if excluded(name, patterns) is None}
        mapped, unknown, reasons = _read_heads(model, names, split_groups)
        if unknown:
            _warn_unknown(model, unknown, reasons)
        for path, head in mapped:
            slices = []
            for piece in head.pieces:
                name = names[id(piece.tensor)]
                # A bias goes with its weight, even where `include` names the weight alone.
                leader = name if piece.weight is None else names[id(piece.weight)]
                if name in kept and leader in kept and included(leader):
                    slices.append(Slice(name, piece.row, piece.rows, piece.column, piece.columns))
            if slices:
                label = f"{path}.{head.label}" if path else head.label
                tower, block, part, _ = places.of_head(label)
                found.append(Unit(label, "head", tuple(slices), tower, block, head.index, part))

    touched = {piece.parameter for unit in found for piece in unit.slices}
    _check_memory({name: first[name] for name in first if name in touched})
    skipped = {name: skipped.get(name, "belongs to no head") for name in first if name not in touched}
    if not found:
        reasons = sorted(set(skipped.values()))
        raise ModelError(
            f"nothing to edit is left of the {len(first)} parameters of {type(model).__name__}: "
            f"{'; '.join(reasons[:5])}. Unfreeze parameters, or widen include/exclude"
        )
    return Units(
        found,
        first,
        skipped=skipped,
        aliases=aliases,
        unknown_attention=unknown,
        model_name=type(_bare(model)).__name__,
        wrapping=wrapping,
    )


def _patterns(given: str | Sequence[str], option: str) -> tuple[str, ...]:
    patterns = (given,) if isinstance(given, str) else tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ConfigError(f"{option} takes fnmatch patterns (strings), got {pattern!r}")
    return patterns


def _unusable(parameter: nn.Parameter, skip_frozen: bool) -> str | None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "not initialised (lazy module): run one forward first"
    kind = type(parameter.data)
    if kind is not torch.Tensor and not is_sharded(parameter):
        return f"a {kind.__name__} (quantised or fake): edit the full, plain parameter"
    if parameter.layout is not torch.strided:
        return f"layout {str(parameter.layout).removeprefix('torch.')} cannot be edited: make it dense"
    if parameter.dtype not in EDITABLE_DTYPES:
        return f"dtype {str(parameter.dtype).removeprefix('torch.')} cannot be edited: load it in a floating dtype"
    if parameter.numel() == 0:
        return "empty"
    if skip_frozen and not parameter.requires_grad:
        return "frozen (requires_grad=False)"
    return None


def _check_memory(parameters: Mapping[str, nn.Parameter]) -> None:
    """Two Parameters on one piece of memory have two gradients, each half the truth, and would be edited twice."""
    at: dict[tuple[torch.device, int], str] = {}
    for name, parameter in parameters.items():
        local = local_tensor(parameter)
        place = (parameter.device, local.data_ptr())
        if not local.numel():
            continue  # of a parameter with fewer rows than ranks
        if place in at:
            raise ModelError(
                f"parameters {at[place]!r} and {name!r} share their memory but are two Parameter objects; tie them by "
                "assigning one Parameter to both modules, or exclude both"
            )
        at[place] = name


def _read_heads(
    model: nn.Module, names: Mapping[int, str], split_groups: bool
) -> tuple[list[tuple[str, Head]], list[str], dict[str, str]]:
    """Heads of every module a map knows, the names of attention modules none knew, and why where it is known."""
    found: list[tuple[str, Head]] = []
    mapped: list[str] = []
    candidates: list[str] = []
    reasons: dict[str, str] = {}
    for path, module in model.named_modules():
        if any(_inside(path, outer) for outer in mapped):
            continue
        head_map = find_map(module)
        if head_map is not None:
            try:
                read = head_map.read(module)
                read = read if split_groups else join_groups(read)
                for head in read:
                    for piece in head.pieces:
                        _check_piece(piece, names)
            except (HeadMapError, AttributeError) as error:
                reasons[path] = f"{head_map.architecture}: {error}"
                candidates.append(path)
                continue
            except ModelError as error:
                raise ModelError(f"{path or type(module).__name__}: {error}") from None
            mapped.append(path)
            found += [(path, head) for head in read]
        elif looks_like_attention(module):
            candidates.append(path)
    # The innermost attention-like module is the one to write a map for; containers of mapped ones are served.
    unknown = [
        path
        for path in candidates
        if not any(_inside(other, path) for other in (*mapped, *candidates) if other != path)
    ]
    return found, unknown, reasons


def _inside(path: str, outer: str) -> bool:
    return outer == "" or path == outer or path.startswith(outer + ".")


def _check_piece(piece, names: Mapping[int, str]) -> None:
    if id(piece.tensor) not in names:
        raise HeadMapError("a weight is computed (parametrised), not a parameter of the model")
    rows, columns = matrix_shape(piece.tensor.shape)
    if piece.row < 0 or piece.column < 0 or piece.row + piece.rows > rows or piece.column + piece.columns > columns:
        raise HeadMapError(
            f"{names[id(piece.tensor)]} is {rows} by {columns}, a head wants rows {piece.row} to "
            f"{piece.row + piece.rows}, columns {piece.column} to {piece.column + piece.columns}"
        )


def _warn_unknown(model: nn.Module, unknown: Sequence[str], reasons: Mapping[str, str]) -> None:
    kinds = sorted({type(model.get_submodule(path)).__name__ for path in unknown})
    why = next((f" ({reasons[path]})" for path in unknown if path in reasons), "")
    warnings.warn(
        f"{len(unknown)} attention modules of {type(model).__name__} have no head map and give layers only: "
        f"{', '.join(kinds[:4])}, first {unknown[0] or 'the model itself'!r}{why}. "
        "docs/units.md says how to add a map.",
        stacklevel=3,
    )


def _bare(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DataParallel and DDP wrappers."""
    while True:
        inner = next((getattr(model, name) for name in ("_orig_mod", "module") if name in model._modules), None)
        if inner is None or len(model._modules) > 1:
            return model
        model = inner
