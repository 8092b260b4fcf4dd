"""The YAML file of a run, checked in full before a model is loaded: model, data, concept, task, method, output.

    config = load_run_config("run.yaml", overrides=["razor.alpha=0.3"])

Paths in the file start at the file's folder, paths in overrides at the current one. Every problem is named with its
option, its line, the value given and the remedy. Calls config and errors only: no torch, so that it answers at once.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from .config import RazorConfig, Strict
from .errors import ConfigError

__all__ = ["DataSection", "ModelSection", "RunConfig", "SideSection", "SourceSection", "TaskSection", "load_run_config"]

PART_NAMES = ("train", "validation", "test")
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz")
ADDRESS = re.compile(r"(hf-hub|local-dir):")
# options that hold a path, and those that hold either a path or a name, by the name of their section
PATHS = {"model": ("config",), "source": ("path", "root"), "run": ("output",)}
PATHS_OR_NAMES = {"model": ("name", "pretrained")}
LISTS_OR_FILES = {"source": ("class_names",), "run": ("classes", "templates")}


def read_lines(value):
    """A text file's lines, without blank ones, where a path is given for a list."""
    if not isinstance(value, str):
        return value
    try:
        lines = Path(value).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such text file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise ValueError(f"{value}: {reason}; give a list, or a text file with one entry a line") from None
    return [line.strip() for line in lines if line.strip()]


Lines = Annotated[tuple[str, ...], BeforeValidator(read_lines)]
Name = Annotated[str, Field(min_length=1)]


class Section(Strict):
    """A part of the file. Numbers are taken for names where a name is wanted: class 7 is the class '7'."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, protected_namespaces=())

    def __init__(self, **options):
        BaseModel.__init__(self, **options)

    # pydantic then builds nested sections itself, and a problem keeps its whole option path
    __init__.__pydantic_base_init__ = True


class RazorSection(RazorConfig):
    """RazorConfig, as a section."""

    def __init__(self, **options):
        BaseModel.__init__(self, **options)

    __init__.__pydantic_base_init__ = True


class ModelSection(Section):
    """Which model, with which weights, and where it computes."""

    library: Literal["open_clip", "transformers"] = Field("open_clip", description="who loads it")
    name: Name | None = Field(
        None,
        description="open_clip: an architecture (ViT-B-32), hf-hub:org/name, or a folder with open_clip_config.json; "
        "transformers: a folder of save_pretrained, or a hub id",
    )
    pretrained: Name | None = Field(
        None, description="open_clip: a checkpoint file, or a tag of the architecture (laion2b_s34b_b79k)"
    )
    config: Name | None = Field(None, description="open_clip: a model configuration (JSON) that is not built in")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the weights; an edit fits a checkpoint stored in the same one"
    )
    device: str = Field("auto", description="auto (CUDA where there is one), cpu, cuda or cuda:1")

    @field_validator("device")
    @classmethod
    def _known_device(cls, value):
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError("expected auto, cpu, cuda or cuda:<number>")
        return value

    @model_validator(mode="after")
    def _enough(self):
        if self.library == "transformers":
            extra = [option for option in ("pretrained", "config") if getattr(self, option) is not None]
            if extra:
                raise ValueError(
                    f"{extra[0]} belongs to library: open_clip; for transformers, name is the folder of the model"
                )
            if self.name is None:
                raise ValueError("name is missing: the folder of the model, or its hub id")
        elif self.name is None and self.config is None:
            raise ValueError("name is missing: an open_clip architecture, or a folder with open_clip_config.json")
        return self

    @property
    def architecture(self) -> str:
        """open_clip's name of the model: `name`, or the stem of `config`."""
        return self.name or Path(self.config).stem


class SourceSection(Section):
    """Where samples come from. In short form, a path alone. docs/data.md says which format takes which option."""

    path: Name | tuple[Name, ...] = Field(description="file, folder, brace pattern or list of tars; no addresses")
    format: Literal["webdataset", "folder", "csv", "huggingface"] | None = Field(
        None, description="default: found from the path"
    )
    image_key: str | None = Field(None, description="column of the image, or of its file")
    caption_key: str | None = Field(None, description="column of the caption, or its key in a tar's json")
    label_key: str | None = Field(None, description="column of the class, or its key in a tar's json")
    class_names: dict[str, str] | Lines | None = Field(
        None, description="names behind numbered labels (list, or text file), or folder name -> class name"
    )
    templates: Lines | None = Field(None, description="captions made from a label: 'a photo of a {}'")
    captions: Literal["first", "all"] | None = Field(None, description="of a column that holds lists of captions")
    layout: Literal["classes", "captions", "metadata"] | None = Field(None, description="of an image folder")
    split: str | None = Field(None, description="of a saved data set, or a subfolder of an image folder")
    separator: str | None = Field(None, description="of a csv")
    root: str | None = Field(None, description="folder that a table's image files start at; default: the table's")
    name: str | None = Field(None, description="prefix of the samples' keys in messages and logs")
    max_bad_share: float | None = Field(
        None, ge=0, le=1, description="share of unreadable samples that is skipped; default: that of data"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value):
        return {"path": value} if isinstance(value, (str, list, tuple)) else value

    def options(self, max_bad_share: float) -> dict[str, Any]:
        """What data.open_source takes."""
        given = {name: getattr(self, name) for name in self.model_fields_set if getattr(self, name) is not None}
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
        return {"max_bad_share": max_bad_share, **given}


class SideSection(Section):
    """The forget or the retain set: one source (in short form, a path), to be cut into parts, or the three parts."""

    source: SourceSection | None = Field(None, description="all samples of this side, cut by data.fractions")
    train: SourceSection | None = Field(None, description="gives the gradients")
    validation: SourceSection | None = Field(None, description="decides: step sizes, when to stop")
    test: SourceSection | None = Field(None, description="only ever reported")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value):
        if isinstance(value, (str, list, tuple)) or (isinstance(value, dict) and "path" in value):
            return {"source": value}
        return value

    @model_validator(mode="after")
    def _one_or_three(self):
        parts = [name for name in PART_NAMES if getattr(self, name) is not None]
        if self.source is not None and parts:
            raise ValueError(f"give either one source, or train, validation and test; given: source and {parts[0]}")
        if self.source is None and len(parts) != 3:
            missing = [name for name in PART_NAMES if name not in parts]
            raise ValueError(f"{' and '.join(missing)} missing: give train, validation and test, or one source")
        return self

    def items(self) -> list[tuple[str, SourceSection]]:
        """("source", ...), or the three parts by name."""
        return [(name, s) for name in ("source", *PART_NAMES) if (s := getattr(self, name)) is not None]


SPLIT_OPTIONS = ("by", "synonyms", "whole_words", "plural", "shared_images", "max_forget", "max_retain")


class DataSection(Section):
    """One source that is split by the concept, or forget and retain by themselves."""

    source: SourceSection | None = Field(None, description="everything; samples that show the concept are to be lost")
    forget: SideSection | None = Field(None, description="samples to lose, where they stand apart")
    retain: SideSection | None = Field(None, description="samples to keep, where they stand apart")
    by: Literal["auto", "label", "caption"] = Field(
        "auto", description="what shows the concept; auto: the label where there is one, else the caption"
    )
    synonyms: tuple[Name, ...] = Field((), description="other names that show the concept too")
    whole_words: bool = Field(True, description="in captions, 'cat' does not match 'category'")
    plural: bool = Field(False, description="captions may hold the English plural")
    shared_images: Literal["drop", "keep"] = Field(
        "drop", description="images shown under both kinds of captions: left out of retain, or refused"
    )
    max_forget: int | None = Field(None, ge=1, description="at most so many samples to lose")
    max_retain: int | None = Field(None, ge=1, description="at most so many samples to keep")
    fractions: tuple[float, float, float] = Field((0.6, 0.2, 0.2), description="train, validation, test")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="share of unreadable samples that is skipped")

    @field_validator("fractions")
    @classmethod
    def _whole(cls, value):
        if min(value) <= 0 or not math.isclose(sum(value), 1, abs_tol=1e-6):
            raise ValueError("three positive numbers that add up to 1 are expected")
        return value

    @model_validator(mode="after")
    def _one_way(self):
        sides = [name for name in ("forget", "retain") if getattr(self, name) is not None]
        if self.source is not None and sides:
            raise ValueError(f"give either source, or forget and retain; given: source and {sides[0]}")
        if self.source is None and len(sides) != 2:
            raise ValueError("no samples: give source (split by the concept), or both forget and retain")
        if sides:
            idle = [option for option in SPLIT_OPTIONS if option in self.model_fields_set]
            if idle:
                raise ValueError(f"{idle[0]} splits one source by the concept; with forget and retain it does nothing")
            cut = any(side.source is not None for side in (self.forget, self.retain))
            mixed = cut and (self.forget.source is None or self.retain.source is None)
            if mixed:
                raise ValueError("give forget and retain in one way: one source each, or three parts each")
            if "fractions" in self.model_fields_set and not cut:
                raise ValueError("fractions cut a source; forget and retain are given in parts already")
        return self


class TaskSection(Section):
    """How batches are made."""

    batch_size: int = Field(64, ge=2, description="samples of a micro-batch")
    gradient_batches: int | None = Field(
        None, ge=1, description="micro-batches of each side in a gradient; default: the whole train part"
    )


class RunConfig(Section):
    """A whole run."""

    model: ModelSection = Field(description="the model that is to forget")
    data: DataSection = Field(description="what it is to lose and to keep")
    concept: str = Field(description="the class, object or person to lose")
    classes: Lines | None = Field(
        None, description="all classes of zero-shot classification, the concept among them (list, or text file); "
        "default: the labels of the samples, else their captions"
    )  # fmt: skip
    templates: Lines = Field(
        ("a photo of a {}",), description="prompts with one {} for a class (list, or text file)"
    )
    reference: ModelSection | None = Field(
        None, description="a model trained without the concept: the yardstick of privacy_leakage"
    )
    task: TaskSection = Field(default_factory=TaskSection, description="batches")
    razor: RazorSection = Field(default_factory=RazorSection, description="the method")
    output: Name | None = Field(None, description="folder of the run; an interrupted run goes on in it")
    seed: int = Field(0, ge=0, description="governs parts, batches and everything else that is drawn")

    def __init__(self, **options):
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise ConfigError(_describe(error, "the configuration")) from error

    @field_validator("concept")
    @classmethod
    def _not_blank(cls, value):
        if not value.strip():
            raise ValueError("the name is empty; name the class, object or person to forget")
        return value.strip()

    @field_validator("classes")
    @classmethod
    def _different(cls, value):
        if value is None:
            return value
        folded = [name.casefold() for name in value]
        doubled = [name for i, name in enumerate(value) if name.casefold() in folded[:i]]
        if doubled:
            raise ValueError(f"{doubled[0]!r} stands in it twice")
        if len(value) < 2:
            raise ValueError("at least two classes are needed")
        return value

    @field_validator("templates")
    @classmethod
    def _one_gap(cls, value):
        wrong = [t for t in value if t.count("{}") != 1 or t.count("{") != 1 or t.count("}") != 1]
        if wrong or not value:
            raise ValueError("a template holds one {} for the class name, as in 'a photo of a {}'" + (
                f"; {wrong[0]!r} does not" if wrong else ""))  # fmt: skip
        return value

    @model_validator(mode="after")
    def _concept_known(self):
        if self.classes is not None and self.concept.casefold() not in (name.casefold() for name in self.classes):
            near = difflib.get_close_matches(self.concept, self.classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"the concept {self.concept!r} is not among the classes{hint}")
        return self

    def razor_config(self) -> RazorConfig:
        """The method's settings, with the run's seed unless razor.seed was given."""
        given = self.razor.model_dump()
        if "seed" not in self.razor.model_fields_set:
            given["seed"] = self.seed
        return RazorConfig(**given)


def load_run_config(path: str | os.PathLike, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """The configuration in the YAML file at `path`, with `overrides` ("razor.alpha=0.3"; values are YAML) on top.

    Relative paths start at the file's folder; those in overrides at the current folder.
    Raises ConfigError for a file that cannot be read, YAML that cannot be parsed (with its line), unknown options (with
    the nearest known one) and impossible values.
    """
    path = Path(path)
    tree, lines = read_yaml(path)
    tree = resolve_paths(tree, path.resolve().parent)
    for text in overrides:
        tree = override(tree, text)
    try:
        return RunConfig(**tree)
    except ConfigError as error:
        raise ConfigError(_describe(error.__cause__, str(path), lines, overrides)) from None


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The mapping in a YAML file, and the line of each option, by its path."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a configuration in YAML was expected (see examples/)") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; a configuration in YAML was expected") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text ({error})") from None
    loader = yaml.SafeLoader(text)
    lines: dict[tuple[str, ...], int] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{path} is empty; model, data and concept are needed at least (see examples/)")
        _find_lines(node, (), lines, path)
        tree = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context or "not valid YAML"
        source = text.splitlines()[mark.line].strip() if mark and mark.line < len(text.splitlines()) else ""
        hint = " (indent with spaces, not tabs)" if "\\t" in problem else ""
        shown = f": {source!r}" if source else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {problem}{hint}{shown}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    finally:
        loader.dispose()
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}; options by name were expected, as in 'concept: cat'")
    return tree, lines


def _find_lines(node, where: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path) -> None:
    """Fills `lines`. YAML would take the last of two equal names in silence: refused here."""
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            _find_lines(child, (*where, str(index)), lines, path)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, child in node.value:
        place = (*where, str(key.value))
        line = key.start_mark.line + 1
        if place in lines and key.value != "<<":
            raise ConfigError(f"{path}, line {line}: {'.'.join(place)} is given twice (first in line {lines[place]})")
        lines[place] = line
        _find_lines(child, place, lines, path)


def override(tree: dict[str, Any], text: str) -> dict[str, Any]:
    """`tree` with "razor.alpha=0.3" on top. A whole section, `model={name: ...}`, takes the place of the old one."""
    option, equals, value = text.partition("=")
    names = option.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set {text}: expected option=value, as in --set razor.alpha=0.3")
    try:
        parsed = yaml.safe_load(value) if value.strip() else ""
    except yaml.YAMLError:
        raise ConfigError(f"--set {text}: the value is not valid YAML; put quotes around it") from None
    branch = parsed
    for name in reversed(names):
        branch = {name: branch}
    branch = resolve_paths(branch, Path.cwd())

    def put(base, extra, names):
        base = dict(base)
        name, *rest = names
        if not rest:
            base[name] = extra[name]
            return base
        old = base.get(name)
        if isinstance(old, (str, list)):  # the short form of a source is its path
            old = {"path": old}
        base[name] = put(old if isinstance(old, dict) else {}, extra[name], rest)
        return base

    return put(tree, branch, names)


def resolve_paths(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`tree` with its paths made absolute, starting at `folder`. Names that are no paths stay as they are."""

    def absolute(value):
        if isinstance(value, (list, tuple)):
            return [absolute(entry) for entry in value]
        if not isinstance(value, str) or not value.strip() or re.match(r"[a-zA-Z][a-zA-Z0-9+]+:", value):
            return value
        return str(folder / os.path.expanduser(value))

    def name_or_path(value):
        if not isinstance(value, str):
            return value
        prefix = "local-dir:" if value.startswith("local-dir:") else ""
        inner = value.removeprefix(prefix)
        if prefix or (not ADDRESS.match(value) and _looks_like_path(inner, folder)):
            return prefix + absolute(inner)
        return value

    def section(values, kind):
        if kind == "source" and isinstance(values, (str, list)):
            return absolute(values)
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for names, change in ((PATHS, absolute), (PATHS_OR_NAMES, name_or_path)):
            for name in names.get(kind, ()):
                if name in values:
                    values[name] = change(values[name])
        for name in LISTS_OR_FILES.get(kind, ()):
            if isinstance(values.get(name), str):
                values[name] = absolute(values[name])
        return values

    tree = section(tree, "run")
    for name in ("model", "reference"):
        if name in tree:
            tree[name] = section(tree[name], "model")
    data = tree.get("data")
    if isinstance(data, dict):
        data = tree["data"] = dict(data)
        if "source" in data:
            data["source"] = section(data["source"], "source")
        for side in ("forget", "retain"):
            inner = data.get(side)
            if not isinstance(inner, dict) or "path" in inner:
                if side in data:
                    data[side] = section(inner, "source")
            else:
                data[side] = {name: section(value, "source") for name, value in inner.items()}
    return tree


def _looks_like_path(text: str, folder: Path) -> bool:
    if text.startswith((".", "/", "~", "\\")) or text.lower().endswith(CHECKPOINT_SUFFIXES):
        return True
    return bool(text.strip()) and os.path.exists(os.path.join(folder, text))


def _describe(error: ValidationError, where: str, lines=types.MappingProxyType({}), overrides=()) -> str:
    """One line a problem: line of the file, option, what is wrong, value given, remedy."""
    given = {text.partition("=")[0].strip() for text in overrides}
    found = []
    for problem in error.errors():
        place = _clean_location(problem["loc"])
        option = ".".join(place)
        if option in given:
            prefix = f"--set {option}"
        else:
            line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None)
            prefix = f"line {line}: {option}" if line and option else option or "the file"
        value = problem.get("input")
        shown = "" if isinstance(value, (dict, BaseModel)) else f" (given: {value!r})"
        kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if kind == "extra_forbidden":
            found.append(f"{prefix}: unknown option{shown}; {_nearest(place)}")
        elif kind == "missing":
            found.append(f"{prefix}: missing; {_description_of(place)}")
        elif kind in ("model_type", "model_attributes_type", "dict_type"):
            found.append(f"{prefix}: a group of options was expected, not {value!r}; {_nearest((*place, ''))}")
        else:
            found.append(f"{prefix}: {message}{shown}")
    # a union reports one problem for each of its members
    unique = list(dict.fromkeys(found))
    return f"{where} is not valid:\n  " + "\n  ".join(unique)


def _clean_location(location) -> tuple[str, ...]:
    """Option names only: pydantic adds the members of unions and the steps of validators."""
    return tuple(
        str(part)
        for part in location
        if isinstance(part, int) or re.fullmatch(r"[\w-]+", part) and part not in ("str", "float", "int", "bool")
    )


def section_class(place: tuple[str, ...]) -> type[BaseModel] | None:
    """The section that an option path names; () is the whole file."""
    current: type[BaseModel] | None = RunConfig
    for name in place:
        field = current.model_fields.get(name) if current else None
        current = field and _model_in(field.annotation)
    return current


def _model_in(annotation) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in getattr(annotation, "__args__", ()) if (m := _model_in(a))), None)


def _nearest(place: tuple[str, ...]) -> str:
    """The remedy for an unknown option: the nearest known one, here or in another section, else what there is."""
    *parents, name = place
    section = section_class(tuple(parents))
    here = list(section.model_fields) if section else []
    near = difflib.get_close_matches(name, here, n=1)
    if near:
        return f"did you mean {'.'.join([*parents, near[0]])}?"
    from .run_schema import options

    elsewhere = [path for path in options() if path.rpartition(".")[2] == name]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"known here: {', '.join(here)}" if here else "see docs/config.md"


def _description_of(place: tuple[str, ...]) -> str:
    section = section_class(place[:-1])
    field = section.model_fields.get(place[-1]) if section else None
    return f"give {field.description}" if field and field.description else "see docs/config.md"
