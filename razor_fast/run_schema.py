"""The options of a run as text: `razor-fast unlearn --print-schema` and docs/config.md, both from run_config.

python -m razor_fast.run_schema docs/config.md      # writes the options into the page again
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from .run_config import FAMILIES, RunConfig

# where RazorConfig's field says nothing itself
WORDS = {
    "alpha": "weight of the forget/retain cosine in a unit's score; 0 leaves it out",
    "eps": "added to a unit's norm in its score",
    "lambda_forget": "weight of the forget term in a step",
    "rho": "scales the forget term, in (0, 1]",
    "lambda_retain": "weight of the retain term in a step",
    "lambda_mismatch": "weight of the drift from the original model in a step",
    "max_rounds": "rounds of scoring, choosing and stepping at most",
}


@dataclass(frozen=True)
class Option:
    path: str
    type: str
    default: str
    description: str


def options(root: type[BaseModel] = RunConfig) -> dict[str, Option]:
    """Every option of a family by its path, in the order of the file. A section that comes again is named once."""
    found: dict[str, Option] = {}
    _collect(root, (), found, {})
    return found


def _collect(section: type[BaseModel], parents: tuple[str, ...], found: dict[str, Option], seen: dict) -> None:
    for name, field in section.model_fields.items():
        path = ".".join((*parents, name))
        inner = _section_in(field.annotation)
        description = field.description or WORDS.get(name, "")
        if inner is not None:
            again = inner in seen
            kind = f"as {seen[inner]}" if again else "group"
            required = field.is_required()
            found[path] = Option(path, kind, "required" if required else "-", description)
            if not again:
                seen[inner] = path
                _collect(inner, (*parents, name), found, seen)
            continue
        found[path] = Option(path, type_name(field.annotation), _default(field), description)


def _section_in(annotation) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in typing.get_args(annotation) if (m := _section_in(a))), None)


def type_name(annotation: Any) -> str:
    """A type in a user's words: "number", "fp32 | bf16", "list of text"."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(inner[0])
    if origin is typing.Literal:
        return " | ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(type_name(a) for a in inner if a is not type(None)))
    if origin is tuple:
        if Ellipsis in inner:
            return f"list of {type_name(inner[0])}s"
        return f"{len(inner)} {type_name(inner[0])}s"
    if origin is dict:
        return f"{type_name(inner[0])} -> {type_name(inner[1])}"
    return {str: "text", int: "whole number", float: "number", bool: "true | false"}.get(annotation, str(annotation))


def _default(field) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or value in ((), {}):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_text(width: int = 120) -> str:
    """Aligned lines for a terminal, wrapped at `width`: one list of options a family."""
    import textwrap

    lines = ["Options of a run, in YAML; nested names as in `--set razor.alpha=0.3`."]
    for family, root in FAMILIES.items():
        lines += ["", "", f"== family: {family}{' (the default)' if root is RunConfig else ''}", ""]
        for option in options(root).values():
            if option.type == "group":
                needed = ", required" if option.default == "required" else ""
                lines += ["", f"{option.path}:  ({option.description}{needed})"]
                continue
            head = f"  {option.path}: {option.type}"
            head += {"required": " (required)", "-": ""}.get(option.default, f" = {option.default}")
            lines.append(head)
            lines += textwrap.wrap(option.description, width - 8, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """For docs/config.md: one part a family, one table a group. The method's options are the same for all."""
    parts = []
    for family, root in FAMILIES.items():
        parts += [f"## family: {family}", ""]
        found = options(root)
        groups: dict[str, list[Option]] = {"": []}
        titles = {"": "The file"}
        for option in found.values():
            if option.type == "group":
                groups[option.path], titles[option.path] = [], f"`{option.path}`: {option.description}"
        for option in found.values():
            groups[option.path.rpartition(".")[0]].append(option)
        for path, members in groups.items():
            parts += [f"### {titles[path]}", ""]
            if path == "razor" and root is not RunConfig:
                parts += ["As for family clip.", ""]
                continue
            parts += ["| option | type | default | |", "|---|---|---|---|"]
            for option in members:
                cells = (f"`{option.path}`", option.type, option.default, option.description)
                parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            parts.append("")
    return "\n".join(parts)


BEGIN, END = "<!-- options: written by python -m razor_fast.run_schema docs/config.md -->", "<!-- end of options -->"


def with_options(page: str) -> str:
    """A page of documentation with the options between its two marks brought up to date."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{as_markdown()}\n{END}{after}"


if __name__ == "__main__":
    import sys
    from pathlib import Path

    for name in sys.argv[1:]:
        Path(name).write_text(with_options(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
