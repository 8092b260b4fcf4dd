"""Edits: which slices of a model changed, to what values, and how to undo it.

An Edit is captured from a model that was just changed, saved as one safetensors file, loaded, applied to another copy
of the same base, reverted, stacked with others and merged into checkpoints. Everything is checked before anything is
written, and every byte that is restored is the byte that was there. The format is described in docs/edit-files.md.

Calls units (Slice), edit_file (the format), fingerprint, matrix and atomic; edit_stack, edit_summary and merge build on
this room.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .atomic import atomic_files
from .components import as_module
from .distributed import Wrapping, is_sharded, read_slice, write_slice
from .edit_file import (
    DTYPES,
    EDIT_FORMAT,
    UNDO_FORMAT,
    Manifest,
    ModelRecord,
    SliceRecord,
    UndoManifest,
    UnitRecord,
    check_manifest,
    check_tensors,
    find_overlap,
    library_versions,
    parse_manifest,
    plain_json,
    read_file,
    undo_path,
    write_file,
)
from .errors import BaseMismatchError, EditError, ModelError, NonFiniteError, PlanError
from .fingerprint import (
    Fingerprint,
    combine,
    dtype_name,
    fingerprint,
    hash_state,
    hash_tensor,
    hash_text,
    parallel,
    plain_tensor_problem,
    state_tensors,
)
from .matrix import matrix_shape, same_bits
from .units import Slice

if TYPE_CHECKING:
    from .units import Unit

_DESCRIPTION = ("configuration", "seeds", "metrics_before", "metrics_after")


@dataclass(frozen=True, eq=False)
class Edit:
    """Slices of a model, their new values and, where it is at hand, their old ones.

    manifest: what the file says (slices, units, hashes, configuration, seeds, metrics). new: one CPU tensor
    [rows, columns] per slice in the parameter's own dtype. old: the same for the base values, or None. `==` is
    identity; compare `sha256` to know whether two edits are the same.

    Raises EditError when values and manifest disagree, so an Edit that exists can be saved.
    """

    manifest: Manifest
    new: tuple[Tensor, ...] = field(repr=False)
    old: tuple[Tensor, ...] | None = field(default=None, repr=False)

    def __post_init__(self):
        check_manifest(self.manifest)
        for name, which in (("new", "new_sha256"), ("old", "base_sha256")):
            values = getattr(self, name)
            if values is None and name == "old":
                continue
            object.__setattr__(self, name, tuple(values))
            if len(values) != len(self.manifest.slices):
                raise EditError(f"{len(values)} {name} values were given for {len(self.manifest.slices)} slices.")
            tensors = {record.key: value for record, value in zip(self.manifest.slices, values)}
            check_tensors(f"{name} values", tensors, self.manifest.slices, which)

    @classmethod
    def _of_checked(cls, manifest: Manifest, new: Sequence[Tensor], old: Sequence[Tensor] | None = None) -> Edit:
        """Without __post_init__, which would hash every value once more: for values that were just hashed."""
        edit = object.__new__(cls)
        for name, value in (("manifest", manifest), ("new", tuple(new)), ("old", None if old is None else tuple(old))):
            object.__setattr__(edit, name, value)
        return edit

    @property
    def sha256(self) -> str:
        """Hash of the manifest's text, which holds the hash of every value: equal exactly when the edits are."""
        return hash_text(self.manifest.text())

    @property
    def slices(self) -> tuple[Slice, ...]:
        return tuple(Slice(r.parameter, r.row, r.rows, r.column, r.columns) for r in self.manifest.slices)

    @property
    def units(self) -> dict[str, tuple[Slice, ...]]:
        """The slices of each unit, by name, in the order of the edit."""
        slices = self.slices
        return {unit.name: tuple(slices[index] for index in unit.slices) for unit in self.manifest.units}

    @property
    def elements(self) -> int:
        return sum(record.elements for record in self.manifest.slices)

    @property
    def bytes(self) -> int:
        return sum(record.bytes for record in self.manifest.slices)

    @property
    def can_revert(self) -> bool:
        return self.old is not None

    @staticmethod
    def capture(
        model: nn.Module,
        units: Iterable[Unit],
        old: Sequence[Tensor],
        manifest: Mapping[str, Any] | None = None,
    ) -> Edit:
        """The edit that turned the base into `model` as it is now.

        units: what was edited, disjoint. old: the base values of their slices, in the order of the units and of each
        unit's slices, [rows, columns] or flat, in the parameter's dtype or a wider one that holds the same values.
        manifest: any of configuration, seeds, metrics_before, metrics_after; JSON values only. Paths and times in them
        would make the hash of the file depend on the machine: leave them out.

        Reads every parameter and persistent buffer once to hash it; writes nothing. Of a model on several ranks, slices are
        gathered one by one and parameters band by band; all ranks call and get the same edit, which one saves. Raises ModelError
        (meta, lazy or quantised parameters), PlanError (slices that overlap, leave their parameter or name none), EditError
        (old values or manifest of the wrong form), NonFiniteError (a new value is NaN or infinite).
        """
        units = tuple(units)
        described = _description(manifest)
        tensors = state_tensors(model)
        aliases = _aliases(tensors)
        wanted = [(unit, piece) for unit in units for piece in unit.slices]
        old = tuple(old)
        if len(old) != len(wanted):
            raise EditError(f"{len(old)} old values were given; the {len(units)} units have {len(wanted)} slices.")
        new, base = [], []
        for (unit, piece), value in zip(wanted, old):
            parameter = _capturable(tensors, unit.name, piece)
            new.append(read_slice(parameter, piece))
            base.append(_base_values(value, parameter, piece))
            _check_finite(new[-1], base[-1], unit.name, piece)

        before, after = parallel(hash_tensor, base), parallel(hash_tensor, new)
        records = tuple(
            SliceRecord(
                parameter=piece.parameter,
                row=piece.row,
                rows=piece.rows,
                column=piece.column,
                columns=piece.columns,
                shape=tuple(tensors[piece.parameter].shape),
                dtype=dtype_name(tensors[piece.parameter].dtype),
                base_sha256=first,
                new_sha256=second,
            )
            for (_, piece), first, second in zip(wanted, before, after)
        )
        _check_disjoint(records, tensors)
        start, unit_records = 0, []
        for unit in units:
            unit_records.append(_unit_record(unit, start))
            start += len(unit.slices)
        touched = {record.parameter for record in records}
        hashes = hash_state(tensors)
        edited = combine(tensors, hashes)
        full = Manifest(
            model=ModelRecord(
                sha256=_fingerprint_with(tensors, hashes, records, base).model,
                edited_sha256=edited.model,
                architecture_sha256=edited.architecture,
                elements=edited.elements,
            ),
            slices=records,
            units=tuple(unit_records),
            tied={name: aliases[name] for name in sorted(touched) if aliases[name]},
            versions=library_versions(),
            **described,
        )
        check_manifest(full)
        return Edit._of_checked(full, new, base)

    def describe(self, **manifest: Any) -> Edit:
        """The same edit with other configuration, seeds, metrics_before or metrics_after (and so another sha256)."""
        return Edit._of_checked(self.manifest.model_copy(update=_description(manifest)), self.new, self.old)

    def without_undo(self) -> Edit:
        """The same edit without the old values."""
        return Edit._of_checked(self.manifest, self.new)

    def save(
        self,
        path: str | os.PathLike,
        undo: str | os.PathLike | bool | None = None,
        *,
        overwrite: bool = False,
    ) -> Path:
        """Writes the edit file; the old values only when asked, to a separate undo file. Returns the path.

        undo: True for '<stem>.undo.safetensors' beside it, or a path. **The undo file and the edited model together
        restore what was forgotten**: keep it apart, or do not write it. Both files appear whole or not at all.

        Raises EditError (no old values to write, folder missing), RunDirectoryError (exists, and not overwrite).
        """
        path = Path(path)
        second = _undo_choice(path, undo)
        if second is not None and self.old is None:
            raise EditError(
                "an undo file was asked for, but this edit holds no old values. Load it with its undo file, or save "
                "what apply() returned."
            )
        outputs = (path,) if second is None else (second, path)
        records = self.manifest.slices
        with atomic_files(*outputs, overwrite=overwrite) as temporaries:
            if second is not None:
                undo_manifest = UndoManifest(
                    edit_sha256=self.sha256, slices=tuple((record.key, record.base_sha256) for record in records)
                )
                old = {record.key: value for record, value in zip(records, self.old)}
                write_file(temporaries[0], undo_manifest.text(), old)
            new = {record.key: value for record, value in zip(records, self.new)}
            write_file(temporaries[-1], self.manifest.text(), new)
        return path

    def apply(self, model: nn.Module, *, whole_model: bool = False) -> Edit:
        """Writes the new values into `model`; returns the edit with the values it replaced, ready to revert.

        model: a module, or a diffusers pipeline, whose parameters are named behind their component ("unet.<name>").
        Checked first, for every slice: the parameter is there, with the shape and dtype recorded, and holds the base
        values. whole_model: every other parameter and buffer must be that of the base too (one more pass over the
        model). Works on any device, for frozen and tied parameters and those that require a gradient; version counters
        go up, so a graph recorded before cannot be used by mistake. If writing fails midway, all is restored.

        Raises BaseMismatchError naming the first slice that differs, or saying that the edit is already applied;
        ModelError for what cannot be written (meta, quantised, inference tensors). Over several ranks all call, and all or
        none are changed.
        """
        parameters = self._locate(model)
        current = self._read(parameters)
        found = parallel(hash_tensor, current)
        self._check_holds(found, "base")
        if whole_model and fingerprint(model).model != self.manifest.model.sha256:
            raise BaseMismatchError(
                "the slices of the edit hold the base values, but another parameter or buffer of the model differs "
                "from the model the edit was made on. Load that model, or apply without whole_model=True."
            )
        _write_all(self.manifest.slices, parameters, self.new, current, Wrapping.of(as_module(model)))
        return Edit._of_checked(self.manifest, self.new, current)

    def revert(self, model: nn.Module) -> None:
        """Puts the old values back, bit for bit. Needs them: captured, loaded with the undo file, or from apply().

        Raises EditError without old values; BaseMismatchError when the model does not hold the edit's new values,
        naming the first slice that differs or saying that the edit is not applied.
        """
        if self.old is None:
            raise EditError(
                "this edit holds no old values, so it cannot be reverted. Load it with its undo file "
                "(load_edit(path, undo=...)), or use what apply() returned."
            )
        parameters = self._locate(model)
        current = self._read(parameters)
        self._check_holds(parallel(hash_tensor, current), "new")
        _write_all(self.manifest.slices, parameters, self.old, current, Wrapping.of(as_module(model)))

    def is_applied(self, model: nn.Module) -> bool:
        """Whether every slice of `model` holds the edit's new values. Raises as apply() when the model does not fit."""
        found = parallel(hash_tensor, self._read(self._locate(model)))
        return all(actual == record.new_sha256 for actual, record in zip(found, self.manifest.slices))

    def summary(self) -> dict[str, Any]:
        """Units, slices, elements, bytes, share of the model, change per unit, metrics and hashes, as plain data."""
        from .edit_summary import summarize

        return summarize(self)

    def _read(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        return [read_slice(parameter, record) for record, parameter in zip(self.manifest.slices, parameters)]

    def _locate(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameter of every slice; raises unless all are there, fit the record and can be written."""
        Wrapping.settle_model(as_module(model))
        parameters = dict(as_module(model).named_parameters(remove_duplicate=False))
        for record in self.manifest.slices:
            parameter = parameters.get(record.parameter)
            if parameter is None:
                raise BaseMismatchError(_missing(record.parameter, parameters))
            problem = plain_tensor_problem(parameter)
            if problem is None and parameter.is_inference():
                problem = "is an inference tensor: load the model outside torch.inference_mode()"
            if problem:
                raise ModelError(f"{record.parameter} {problem}.")
            _check_form(record, parameter)
        _check_disjoint(self.manifest.slices, parameters)
        return [parameters[record.parameter] for record in self.manifest.slices]

    def _check_holds(self, found: Sequence[str], which: str) -> None:
        records = self.manifest.slices
        is_base = [actual == record.base_sha256 for actual, record in zip(found, records)]
        is_new = [actual == record.new_sha256 for actual, record in zip(found, records)]
        held, other = (is_base, is_new) if which == "base" else (is_new, is_base)
        if all(held):
            return
        if all(other):
            raise BaseMismatchError(
                "this edit is already applied: every slice of the model holds its new values."
                if which == "base"
                else "this edit is not applied: every slice of the model holds the base values."
            )
        first = held.index(False)
        wanted = "the values the edit was made on" if which == "base" else "the values the edit left"
        raise BaseMismatchError(
            f"{records[first].label} does not hold {wanted} ({held.count(False)} of {len(records)} slices differ, "
            f"{sum(o and not h for h, o in zip(held, other))} of them hold its {'new' if which == 'base' else 'base'} "
            f"values). Give the model the edit was made "
            f"{'on, or stack the edits in the order they were made' if which == 'base' else 'in'}; nothing was changed."
        )


def load_edit(path: str | os.PathLike, undo: str | os.PathLike | bool | None = None) -> Edit:
    """Reads an edit file and checks all of it: format, version, every shape, dtype and hash.

    undo: the undo file, or True for '<stem>.undo.safetensors' beside it. Raises EditError naming what is wrong: not
    there, truncated, corrupted, foreign, of another version, or an undo file of another edit.
    """
    text, tensors = read_file(path, EDIT_FORMAT)
    manifest = parse_manifest(path, text, Manifest)
    try:
        check_manifest(manifest)
    except EditError as error:
        raise EditError(f"{path}: {error}") from error
    new = check_tensors(path, tensors, manifest.slices, "new_sha256")
    second = _undo_choice(Path(path), undo)
    if second is None:
        return Edit._of_checked(manifest, new)
    undo_text, undo_tensors = read_file(second, UNDO_FORMAT)
    stated = parse_manifest(second, undo_text, UndoManifest)
    if stated.edit_sha256 != hash_text(text):
        raise EditError(
            f"{second} belongs to the edit {stated.edit_sha256[:12]}, not to {path}, which is {hash_text(text)[:12]}."
        )
    return Edit._of_checked(manifest, new, check_tensors(second, undo_tensors, manifest.slices, "base_sha256"))


def stack(edits: Sequence[Edit], model: nn.Module | None = None) -> Edit:
    """Several edits, applied in this order, as one. See edit_stack for the rules."""
    from .edit_stack import stack_edits

    return stack_edits(edits, model)


def render(edit: Edit):
    """The summary of an edit as a rich renderable: `rich.print(render(edit))`."""
    from .edit_summary import render as build

    return build(edit)


def read_slices(model: nn.Module, units: Iterable[Unit]) -> list[Tensor]:
    """CPU copies of the slices of `units`, in the order Edit.capture expects its `old` values.

    Raises ModelError, PlanError as Edit.capture.
    """
    tensors = state_tensors(model)
    return [read_slice(_capturable(tensors, unit.name, piece), piece) for unit in units for piece in unit.slices]


def _description(manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    manifest = dict(manifest or {})
    unknown = sorted(set(manifest) - set(_DESCRIPTION))
    if unknown:
        raise EditError(f"the manifest has no field {unknown[0]!r}; the fields to give are {', '.join(_DESCRIPTION)}.")
    for name, value in manifest.items():
        if not isinstance(value, Mapping):
            raise EditError(f"{name} must be a dictionary, not {type(value).__name__}.")
    return {name: plain_json(dict(value), name) for name, value in manifest.items()}


def _aliases(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return {name: tuple(other for other in names[id(tensor)] if other != name) for name, tensor in tensors.items()}


def _missing(name: str, parameters: Mapping[str, Tensor]) -> str:
    message = f"the model has no parameter {name}"
    near = [other for other in parameters if other.endswith(f".{name}") or name.endswith(f".{other}")]
    if near:
        message += f" (it has {near[0]}: give the module whose parameters carry the names of the edit)"
    return f"{message}. The edit was made on another architecture; nothing was changed."


def _check_form(record: SliceRecord, tensor: Tensor) -> None:
    if tuple(tensor.shape) != record.shape:
        raise BaseMismatchError(
            f"{record.parameter} has shape {list(tensor.shape)}; the edit was made on {list(record.shape)}."
        )
    if dtype_name(tensor.dtype) != record.dtype:
        raise BaseMismatchError(
            f"{record.parameter} is {dtype_name(tensor.dtype)}; the edit was made on {record.dtype}. Load the model in "
            f"{record.dtype}: converted weights are other weights."
        )


def _capturable(tensors: Mapping[str, Tensor], unit: str, piece: Slice) -> nn.Parameter:
    parameter = tensors.get(piece.parameter)
    if not isinstance(parameter, nn.Parameter):
        raise PlanError(f"the unit {unit} names the parameter {piece.parameter}, which the model does not have.")
    problem = plain_tensor_problem(parameter)
    if problem:
        raise ModelError(f"{piece.parameter} {problem}.")
    if dtype_name(parameter.dtype) not in DTYPES:
        raise ModelError(f"{piece.parameter} has dtype {parameter.dtype}; an edit can hold {', '.join(DTYPES)}.")
    rows, columns = matrix_shape(parameter.shape)
    inside = (
        0 <= piece.row < piece.row + piece.rows <= rows and 0 <= piece.column < piece.column + piece.columns <= columns
    )
    if not inside:
        raise PlanError(f"{piece} of the unit {unit} is empty or leaves its parameter, a matrix of {rows} x {columns}.")
    return parameter


def _base_values(value: Tensor, parameter: Tensor, piece: Slice) -> Tensor:
    """`value` as CPU [rows, columns] in the parameter's dtype; a wider dtype must hold just these values."""
    if not isinstance(value, Tensor) or value.numel() != piece.elements:
        given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise EditError(f"the old values of {piece} are {given}; expected a tensor [{piece.rows}, {piece.columns}].")
    if value.dim() != 1 and tuple(value.shape) != (piece.rows, piece.columns):
        raise EditError(
            f"the old values of {piece} are {list(value.shape)}; expected [{piece.rows}, {piece.columns}] or flat."
        )
    value = value.detach().cpu()
    narrow = torch.empty((piece.rows, piece.columns), dtype=parameter.dtype)
    narrow.copy_(value.reshape(piece.rows, piece.columns))
    if not same_bits(narrow.to(value.dtype).reshape(value.shape), value.contiguous()):
        raise EditError(
            f"the old values of {piece} are {value.dtype} and do not fit into the parameter's {parameter.dtype} "
            f"without rounding. Save the base slices in the parameter's own dtype before editing."
        )
    return narrow


def _check_finite(new: Tensor, base: Tensor, unit: str, piece: Slice) -> None:
    if math.isfinite(float(new.double().sum())):  # one pass; only a sum that is not finite needs a look at each element
        return
    broken = ~torch.isfinite(new.double()) & torch.isfinite(base.double())
    if broken.any():
        raise NonFiniteError(
            f"{int(broken.sum())} new values of {piece} (unit {unit}) are NaN or infinite. Take a smaller step; "
            f"nothing was captured."
        )


def _check_disjoint(records: Sequence[SliceRecord], tensors: Mapping[str, Tensor]) -> None:
    """Also across the names of a tied parameter, where the second write would overwrite the first."""
    first_name: dict[tuple, str] = {}
    renamed = []
    for record in records:
        tensor = tensors[record.parameter]
        at = id(tensor) if is_sharded(tensor) else tensor.data_ptr()
        place = (tensor.device, at, tensor.shape, tensor.stride())
        name = first_name.setdefault(place, record.parameter)
        renamed.append(record if name == record.parameter else record.model_copy(update={"parameter": name}))
    overlap = find_overlap(renamed)
    if overlap:
        pair = [records[next(i for i, r in enumerate(renamed) if r is part)].key for part in overlap]
        raise PlanError(
            f"the slices {pair[0]} and {pair[1]} overlap in the model. Edit a layer or its heads, not both "
            f"(units.subset(names) checks this), and a tied parameter under one name only."
        )


def _unit_record(unit: Unit, start: int) -> UnitRecord:
    described = {
        name: getattr(unit, name) for name in ("kind", "tower", "block", "head", "part") if hasattr(unit, name)
    }
    described.setdefault("kind", "layer")
    return UnitRecord(name=unit.name, slices=tuple(range(start, start + len(unit.slices))), **described)


def _fingerprint_with(
    tensors: Mapping[str, Tensor], hashes: Mapping[str, str], records: Sequence[SliceRecord], values: Sequence[Tensor]
) -> Fingerprint:
    """The fingerprint `tensors` would have with `values` in the slices; hashes only those parameters again."""
    pieces: dict[int, list[tuple[SliceRecord, Tensor]]] = {}
    for record, value in zip(records, values):
        pieces.setdefault(id(tensors[record.parameter]), []).append((record, value))

    def hash_replaced(tensor: Tensor) -> str:
        replaced = tensor.detach().clone() if is_sharded(tensor) else tensor.detach().to("cpu", copy=True)
        for record, value in pieces[id(tensor)]:
            write_slice(replaced, record, value)
        return hash_tensor(replaced)

    changed = {id(tensor): tensor for tensor in tensors.values() if id(tensor) in pieces}
    again = dict(zip(changed, parallel(hash_replaced, list(changed.values()))))
    return combine(tensors, {name: again.get(id(tensor), hashes[name]) for name, tensor in tensors.items()})


def _write_all(
    records: Sequence[SliceRecord],
    parameters: Sequence[Tensor],
    values: Sequence[Tensor],
    previous: Sequence[Tensor],
    ranks: Wrapping,
) -> None:
    """Writes every slice and reads it back; on any failure, of any rank, Ctrl-C included, restores `previous` and raises."""
    begun = 0
    with torch.inference_mode(False), torch.no_grad():
        try:
            try:
                for record, parameter, value in zip(records, parameters, values):
                    begun += 1
                    write_slice(parameter, record, value)
            except BaseException:
                ranks.gather(False)
                raise
            if not all(ranks.gather(True)):  # before reading, which all ranks do together
                raise EditError("another rank could not write its part of the edit; the model is as it was before.")
            for record, parameter, value in zip(records, parameters, values):
                if not same_bits(read_slice(parameter, record), value):
                    raise EditError(
                        f"{record.label} does not hold what was written: its memory is shared with another parameter."
                    )
        except BaseException as error:
            _restore(records[:begun], parameters, previous)
            if isinstance(error, RuntimeError):
                raise EditError(
                    f"writing {records[begun - 1].label} failed ({error}); the model is as it was before."
                ) from error
            raise


def _restore(records: Sequence[SliceRecord], parameters: Sequence[Tensor], previous: Sequence[Tensor]) -> None:
    lost = []
    for record, parameter, value in zip(records, parameters, previous):
        try:
            write_slice(parameter, record, value)
        except RuntimeError:  # what refused the new values refuses the old ones too, but may never have changed
            if not same_bits(read_slice(parameter, record), value):
                lost.append(record.label)
    if lost:
        raise EditError(f"writing failed, and so did restoring {', '.join(lost)}: load the model again.")


def _undo_choice(path: Path, undo: str | os.PathLike | bool | None) -> Path | None:
    if undo is None or undo is False:
        return None
    return undo_path(path) if undo is True else Path(undo)
