"""Writes edits into checkpoints: a state dict file, or a folder as save_pretrained leaves it.

What comes out has the form of what went in, with the edited slices replaced and every other tensor byte for byte the
same. safetensors files are copied and patched in place, so a shard of any size costs no memory; torch files are loaded
with weights_only=True and saved again. Everything is checked first, and the destination appears whole or not at all.
Calls edit, edit_file, matrix and atomic; builds no model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import safetensors
import torch
from torch import Tensor

from .atomic import atomic_files, atomic_folder, check_empty_folder, check_free
from .edit import Edit
from .edit_file import DTYPES, SliceRecord
from .errors import BaseMismatchError, EditError
from .fingerprint import dtype_name, hash_tensor, plain_tensor_problem
from .matrix import as_bytes, matrix_shape, read_slice, same_bits, write_slice

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
# In a folder: what is edited, and what holds weights in a form that is not (copied, it would keep what was forgotten).
_SAFETENSORS_NAMES = ("*.safetensors",)
_TORCH_NAMES = ("*pytorch_model*.bin",)
_LEFT_OUT = (
    "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf", "*.ot", "*.npz", "*.pt", "*.pth", "*.ckpt", "*.mlmodel",
    "*.distcp", "*.tflite",
)  # fmt: skip
# Where training loops keep the model's state dict among other things.
_CONTAINERS = ("state_dict", "model_state_dict", "model", "module")
_WRAPPERS = ("module.", "_orig_mod.")

Place = tuple[str, SliceRecord, Tensor]  # tensor name in the file, slice, new values


@dataclass(frozen=True)
class MergeReport:
    """What merge_checkpoint did. Names are relative to the destination.

    edited: slices written, by file. copied: files taken over as they are. left_out: files not copied because they
    hold weights this merge does not edit, and hidden folders. untouched: entries of a torch checkpoint beside its state
    dict that hold tensors (optimizer states, averaged weights), copied as they are; averaged weights still know what
    was forgotten.
    """

    destination: Path
    edited: dict[str, tuple[str, ...]]
    copied: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()


def merge_checkpoint(edit: Edit, source: str | os.PathLike, destination: str | os.PathLike) -> MergeReport:
    """Writes `source` with the edit applied to `destination`, in the same format.

    source: a state dict file (.safetensors, or .pt/.pth/.bin/.ckpt, bare or under 'state_dict' as open_clip saves it,
    with or without 'module.' before the names), or a folder with model.safetensors or pytorch_model.bin, sharded or
    not, whose configuration and tokenizer are copied. Tensor names must be the parameters' names in the model that was
    edited. Of a tied parameter every copy in the file is edited. In a folder every format present (safetensors, torch)
    is edited; weights in other formats and in subfolders are left out and reported.

    Raises, before anything is written: RunDirectoryError (the destination is there already), BaseMismatchError (a
    tensor is missing, of another shape or dtype, or holds other values than the edit was made on), EditError (the
    source cannot be read).
    """
    source, destination = Path(source), Path(destination)
    if source.is_dir():
        return _merge_folder(edit, source, destination)
    if not source.is_file():
        raise EditError(f"{source} is not there; a checkpoint file or a folder was expected.")
    suffix = source.suffix.lower()
    if suffix != ".safetensors" and suffix not in TORCH_SUFFIXES:
        raise EditError(
            f"{source} has suffix {suffix!r}; expected .safetensors, {', '.join(TORCH_SUFFIXES)} or a folder."
        )
    if (destination.suffix.lower() == ".safetensors") != (suffix == ".safetensors"):
        raise EditError(f"{destination} must have the format of {source}: name it with the suffix {suffix}.")
    check_free(destination)
    file = _open(source)
    places = _find(edit, source, {source.name: file})[source.name]
    with atomic_files(destination) as (temporary,):
        untouched = file.write(temporary, places)
    return MergeReport(destination, {destination.name: _labels(places)}, untouched=untouched)


def _merge_folder(edit: Edit, source: Path, destination: Path) -> MergeReport:
    check_empty_folder(destination)
    if source.resolve() in (destination.resolve(), *destination.resolve().parents):
        raise EditError(f"the destination {destination} lies inside the source {source}. Choose a folder outside it.")
    if (source / "model_index.json").is_file():
        raise EditError(
            f"{source} is a pipeline of several models; merge into the subfolder of the one that was edited."
        )
    copied, left_out, groups = _classify(source)
    weights = [name for group in groups for name in group]
    if not weights:
        raise EditError(f"{source} holds no weights to edit; expected *.safetensors or *pytorch_model*.bin in it.")
    _check_indices(source, copied, weights)
    places: dict[str, list[Place]] = {}
    for group in groups:
        if group:
            places |= _find(edit, source, {name: _open(source / name) for name in group})
    untouched: list[str] = []
    with atomic_folder(destination) as temporary:
        for name in copied:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, temporary / name)
        for name in weights:
            if places[name]:
                untouched += [
                    f"{name}: {entry}" for entry in _open(source / name).write(temporary / name, places[name])
                ]
            else:
                shutil.copyfile(source / name, temporary / name)
    return MergeReport(
        destination,
        edited={name: _labels(places[name]) for name in weights if places[name]},
        copied=tuple(sorted([*copied, *(name for name in weights if not places[name])])),
        left_out=tuple(left_out),
        untouched=tuple(untouched),
    )


def _classify(source: Path) -> tuple[list[str], list[str], tuple[list[str], list[str]]]:
    """Names of the files to copy, to leave out, and of the weights as (safetensors, torch)."""
    copied, left_out, groups = [], [], ([], [])
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_dir():
            continue
        if any(part.startswith(".") for part in name.parts[:-1]):
            folder = next(str(parent) for parent in reversed(name.parents) if parent.name.startswith("."))
            if folder not in left_out:  # .git and caches hold former weights
                left_out.append(folder)
            continue
        aside = len(name.parts) > 1 or path.name.startswith(".")
        safe, plain = (_matches(path.name, patterns) for patterns in (_SAFETENSORS_NAMES, _TORCH_NAMES))
        if _matches(path.name, _LEFT_OUT) or (aside and (safe or plain)):
            left_out.append(str(name))
        elif safe or plain:
            groups[0 if safe else 1].append(str(name))
        else:
            copied.append(str(name))
    return copied, left_out, groups


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _check_indices(source: Path, copied: Sequence[str], weights: Sequence[str]) -> None:
    """Every shard an index names must be there."""
    for name in copied:
        if not name.endswith(".index.json"):
            continue
        try:
            shards = set(json.loads((source / name).read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise EditError(f"{source / name} is no index of shards ({error!r}).") from error
        missing = sorted(shards - set(weights))
        if missing:
            raise EditError(f"{source / name} names {missing[0]}, which is not in the folder. Fetch all shards first.")


def _find(edit: Edit, source: Path, files: Mapping[str, _SafetensorsFile | _TorchFile]) -> dict[str, list[Place]]:
    """Where each slice of the edit stands in `files`, checked against its shape, dtype and base hash."""
    places: dict[str, list[Place]] = {name: [] for name in files}
    for record, new in zip(edit.manifest.slices, edit.new):
        names = (record.parameter, *edit.manifest.tied.get(record.parameter, ()))
        found = [(name, key) for name, file in files.items() for key in map(file.key, names) if key is not None]
        if not found:
            raise BaseMismatchError(_missing(record.parameter, source, files))
        for name, key in found:
            _check(files[name], source if len(files) == 1 else source / name, key, record)
            places[name].append((key, record, new))
    return places


def _check(file: _SafetensorsFile | _TorchFile, path: Path, key: str, record: SliceRecord) -> None:
    shape, dtype = file.form(key)
    if shape != record.shape:
        raise BaseMismatchError(f"{path}: {key} has shape {list(shape)}; the edit was made on {list(record.shape)}.")
    if dtype != record.dtype:
        raise BaseMismatchError(
            f"{path}: {key} is {dtype}; the edit was made on {record.dtype}. Make the edit on the model loaded in "
            f"{dtype}, or save the base in {record.dtype} first."
        )
    actual = hash_tensor(file.read(key, record))
    if actual == record.new_sha256 != record.base_sha256:
        raise BaseMismatchError(f"{path}: {record.label} holds the edit's new values: this edit is already applied.")
    if actual != record.base_sha256:
        raise BaseMismatchError(f"{path}: {record.label} does not hold the values the edit was made on.")


def _missing(name: str, source: Path, files: Mapping[str, _SafetensorsFile | _TorchFile]) -> str:
    message = f"{source} holds no tensor {name}"
    stored = [key for file in files.values() for key in file.names]
    near = [key for key in stored if key.endswith(f".{name}") or name.endswith(f".{key}")]
    if near:
        message += f" (it has {near[0]})"
    return (
        f"{message}. Names must be those of the model that was edited; make the edit on the class the checkpoint was "
        f"saved from, or save the base from the class that was edited."
    )


def _labels(places: Sequence[Place]) -> tuple[str, ...]:
    return tuple(record.label for _, record, _ in places)


def _open(path: Path) -> _SafetensorsFile | _TorchFile:
    return _SafetensorsFile(path) if path.suffix.lower() == ".safetensors" else _TorchFile(path)


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Plain name -> name in the file, for names behind 'module.' or '_orig_mod.'; the plain one wins."""
    found: dict[str, str] = {}
    for name in names:
        plain = name
        while plain.startswith(_WRAPPERS):
            plain = plain.split(".", 1)[1]
        if plain == name:
            found[plain] = name
        else:
            found.setdefault(plain, name)
    return found


class _SafetensorsFile:
    """Reads slices from, and writes a patched copy of, a safetensors file without loading it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with safetensors.safe_open(path, "pt"):  # checks lengths, offsets and shapes
                pass
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                self._header = json.loads(file.read(length))
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise EditError(f"{path} is truncated, corrupted or no safetensors file ({error}).") from error
        self._header.pop("__metadata__", None)
        self._start = 8 + length
        self.names = tuple(self._header)
        self._keys = _unwrapped(self.names)

    def key(self, name: str) -> str | None:
        return name if name in self._header else self._keys.get(name)

    def form(self, key: str) -> tuple[tuple[int, ...], str]:
        stored = self._header[key]["dtype"]
        names = {code: name for name, code in DTYPES.items()}
        return tuple(self._header[key]["shape"]), names.get(stored, stored)

    def _band(self, key: str, record: SliceRecord) -> tuple[int, int, slice]:
        """Where the slice begins in the file (its first row), the bytes of a row, and those of its columns in a row."""
        size = getattr(torch, record.dtype).itemsize
        row_bytes = matrix_shape(self._header[key]["shape"])[1] * size
        begin = self._start + self._header[key]["data_offsets"][0] + record.row * row_bytes
        return begin, row_bytes, slice(record.column * size, (record.column + record.columns) * size)

    def read(self, key: str, record: SliceRecord) -> Tensor:
        """The slice's bytes, uint8 [rows, columns * bytes of an element]."""
        with open(self.path, "rb") as file:
            return torch.from_numpy(self._read_band(file, key, record)[:, self._band(key, record)[2]].copy())

    def _read_band(self, file: BinaryIO, key: str, record: SliceRecord) -> numpy.ndarray:
        begin, row_bytes, _ = self._band(key, record)
        file.seek(begin)
        return numpy.frombuffer(bytearray(file.read(record.rows * row_bytes)), numpy.uint8).reshape(record.rows, -1)

    def write(self, destination: Path, places: Sequence[Place]) -> tuple[str, ...]:
        shutil.copyfile(self.path, destination)
        # plain writes and no memory map: on a full disk they raise, where a map kills the process
        with open(destination, "r+b") as file:
            for key, record, new in places:
                begin, _, columns = self._band(key, record)
                band = self._read_band(file, key, record)
                band[:, columns] = as_bytes(new).numpy().reshape(record.rows, -1)
                file.seek(begin)
                file.write(band)
        return ()


class _TorchFile:
    """The same for a file of torch.save, which is loaded as a whole."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling raises whatever the bytes lead to
            reason = next(iter(str(error).splitlines()), repr(error))
            raise EditError(
                f"{path} cannot be loaded with weights_only=True ({reason}). It is corrupted, a TorchScript archive, "
                f"or holds objects beside tensors: save its state dict again."
            ) from error
        state = _state_dict(self._checkpoint)
        if state is None:
            raise EditError(
                f"{path} holds no state dict; expected tensors by name, bare or under {', '.join(_CONTAINERS)}."
            )
        self._state = state
        self.names = tuple(state)
        self._keys = _unwrapped(self.names)

    def key(self, name: str) -> str | None:
        key = name if name in self._state else self._keys.get(name)
        return key if key is not None and isinstance(self._state[key], Tensor) else None

    def form(self, key: str) -> tuple[tuple[int, ...], str]:
        tensor = self._state[key]
        problem = plain_tensor_problem(tensor)
        if problem:
            raise EditError(f"{self.path}: {key} {problem}.")
        return tuple(tensor.shape), dtype_name(tensor.dtype)

    def read(self, key: str, record: SliceRecord) -> Tensor:
        return read_slice(self._state[key], record)

    def write(self, destination: Path, places: Sequence[Place]) -> tuple[str, ...]:
        state = self._state
        with torch.no_grad():
            for key, record, new in places:
                write_slice(state[key], record, new)
            for key, record, new in places:
                if not same_bits(read_slice(state[key], record), new):
                    raise EditError(f"{self.path}: {key} shares its memory with another edited tensor.")
        torch.save(self._checkpoint, destination)
        if state is self._checkpoint:
            return ()
        others = ((name, entry) for name, entry in self._checkpoint.items() if entry is not state)
        return tuple(str(name) for name, entry in others if _holds_tensors(entry))


def _state_dict(checkpoint: Any) -> Mapping[str, Any] | None:
    if not isinstance(checkpoint, Mapping):
        return None
    for name in _CONTAINERS:
        inner = checkpoint.get(name)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            return inner
    named = all(isinstance(name, str) for name in checkpoint)
    return checkpoint if named and any(isinstance(value, Tensor) for value in checkpoint.values()) else None


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_holds_tensors(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds_tensors(inner) for inner in value)
    return isinstance(value, Tensor)
