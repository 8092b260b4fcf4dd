"""What an edit holds, as plain data and as a table for the terminal. Called by Edit.summary and the command line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .edit import Edit


def summarize(edit: Edit) -> dict[str, Any]:
    """Plain data, ready for JSON.

    share: edited elements over the model's parameters. change: ||new - old|| / ||old||, in float64, None where the old
    values are not at hand or all zero. A slice that several units of a stack share counts in each of them, and once in
    the totals.
    """
    manifest = edit.manifest
    squares = [None if edit.old is None else _squares(new, old) for new, old in _pairs(edit)]
    units = []
    for unit in manifest.units:
        records = [manifest.slices[index] for index in unit.slices]
        elements = sum(record.elements for record in records)
        units.append(
            {
                "name": unit.name,
                "kind": unit.kind,
                "slices": [record.label for record in records],
                "elements": elements,
                "bytes": sum(record.bytes for record in records),
                "share": elements / manifest.model.elements,
                "change": _change([squares[index] for index in unit.slices]),
            }
        )
    return {
        "sha256": edit.sha256,
        "model_sha256": manifest.model.sha256,
        "edited_sha256": manifest.model.edited_sha256,
        "architecture_sha256": manifest.model.architecture_sha256,
        "parents": list(manifest.parents),
        "units": units,
        "slices": len(manifest.slices),
        "elements": edit.elements,
        "bytes": edit.bytes,
        "share": edit.elements / manifest.model.elements if edit.elements else 0.0,
        "change": _change(squares),
        "can_revert": edit.can_revert,
        "metrics_before": manifest.metrics_before,
        "metrics_after": manifest.metrics_after,
        "configuration": manifest.configuration,
        "seeds": manifest.seeds,
        "versions": manifest.versions,
    }


def render(edit: Edit):
    """A rich Group: the units, the metrics before and after, the hashes."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    data = summarize(edit)
    units = Table(title=f"edit {data['sha256'][:12]}", show_footer=True)
    units.add_column("unit", footer="all", overflow="fold")
    units.add_column("kind")
    for title, footer in (
        ("slices", str(data["slices"])),
        ("elements", f"{data['elements']:,}"),
        ("bytes", f"{data['bytes']:,}"),
        ("share", f"{data['share']:.3%}"),
        ("change", _number(data["change"])),
    ):
        units.add_column(title, footer=footer, justify="right")
    for unit in data["units"]:
        units.add_row(
            Text(unit["name"]),
            unit["kind"],
            str(len(unit["slices"])),
            f"{unit['elements']:,}",
            f"{unit['bytes']:,}",
            f"{unit['share']:.3%}",
            _number(unit["change"]),
        )
    parts = [units]
    names = list(dict.fromkeys([*data["metrics_before"], *data["metrics_after"]]))
    if names:
        metrics = Table("metric")
        metrics.add_column("before", justify="right")
        metrics.add_column("after", justify="right")
        for name in names:
            metrics.add_row(
                Text(name), _number(data["metrics_before"].get(name)), _number(data["metrics_after"].get(name))
            )
        parts.append(metrics)
    hashes = Table(show_header=False, box=None)
    for title, key in (
        ("content", "sha256"),
        ("base model", "model_sha256"),
        ("edited model", "edited_sha256"),
        ("architecture", "architecture_sha256"),
    ):
        hashes.add_row(title, data[key] or "unknown")
    hashes.add_row("undo", "at hand" if data["can_revert"] else "not at hand")
    return Group(*parts, hashes)


def _pairs(edit: Edit):
    return zip(edit.new, edit.new if edit.old is None else edit.old)


def _squares(new: Tensor, old: Tensor) -> tuple[float, float]:
    new, old = new.double(), old.double()
    return float((new - old).square().sum()), float(old.square().sum())


def _change(squares: list[tuple[float, float] | None]) -> float | None:
    if not squares or None in squares:
        return None
    moved, base = (sum(part) for part in zip(*squares))
    return math.sqrt(moved / base) if base > 0 else None


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
