"""The figures of a report, as inline SVG: the score map, the rounds, the confusion matrices. Calls svg.py to draw."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from . import svg, words
from .data import ReportData
from .verdict import forget_metric, kept_metrics

__all__ = ["Figure", "score_maps", "score_legend", "round_plots", "confusion_plots", "rounds_of_units", "ClassTable"]

MOST_COLUMNS = 32
MOST_ROWS = 96
MOST_CLASSES = 20
MOST_LOOSE = 16
OTHERS = "others"


@dataclass(frozen=True)
class Figure:
    """title: plain text. note: what else to say under it, or ""."""

    title: str
    svg: str
    note: str = ""


# -- the score map


def rounds_of_units(data: ReportData):
    """(kept, tried): unit -> the round, counted from 1, in which it was added; tried: added, but not in the edit."""
    added, kept = {}, set()
    for entry in data.rounds:
        for unit in entry.units:
            added.setdefault(unit, entry.round + 1)
        kept |= {unit for unit, step in entry.accepted.items() if step is None or step > 0}
    if data.edit is not None:
        kept = {unit.name for unit in data.edit.units}
    return {u: added.get(u) for u in sorted(kept)}, {u: n for u, n in added.items() if u not in kept}


class Scale:
    """phi on a log scale over at most four decades below the highest: 0 to 1, or None where phi is 0 or unknown."""

    def __init__(self, scores):
        positive = [score.phi for score in scores if score.phi is not None and score.phi > 0]
        self.high = max(positive, default=1.0)
        self.low = max(min(positive, default=self.high), self.high * 1e-4)

    def __call__(self, phi):
        if phi is None or phi <= 0:
            return None
        if self.high <= self.low:
            return 1.0
        return max(0.0, math.log(phi / self.low) / math.log(self.high / self.low))


def score_maps(data: ReportData) -> dict[str, list[Figure]]:
    """Tower -> its panels: heads as block x head, layers as block x part."""
    scale, (kept, tried) = Scale(data.scores), rounds_of_units(data)
    towers = {}
    for score in data.scores:
        towers.setdefault(score.tower, []).append(score)
    maps = {}
    for tower, scores in towers.items():
        panels = []
        groups = {}
        for score in scores:
            if score.kind == "head":
                module = score.unit.rsplit(f".{score.part}.", 1)[0] if score.part else score.unit
                groups.setdefault(re.sub(r"\d+", "#", module), []).append((module, score))
        for group in groups.values():
            own = _last_words([module for module, _ in group])
            title = "Heads" if len(groups) == 1 else f"Heads of {own}"
            panels.append(_panel(title, f"{tower} {title}", _heads(group), (), scale, kept, tried, f"heads-{tower}-{own}"))
        layers = [score for score in scores if score.kind == "layer"]
        if layers:
            rows, loose = _layers(layers)
            panels.append(_panel("Layers", f"{tower} layers", rows, loose, scale, kept, tried, f"layers-{tower}"))
        maps[tower] = panels
    return maps


def _last_words(modules):
    return re.sub(r"\d+\.", "", modules[0].rsplit(".", 2)[-1])


def _heads(group):
    """(row label, column label, score): one row an attention module, one column a head."""
    modules = list(dict.fromkeys(module for module, _ in group))
    blocks = {module: score.block for module, score in group}
    labels = _row_labels(modules, blocks)
    return [(labels[module], _head_label(score), score) for module, score in group]


def _head_label(score):
    index = "" if score.head is None else str(score.head)
    return index if score.part in ("head", "") else f"{score.part}{index}"


def _row_labels(keys, blocks):
    """Block numbers where they tell the rows apart, else names."""
    numbers = [blocks[key] for key in keys]
    if None not in numbers and len(set(numbers)) == len(numbers):
        return {key: str(blocks[key]) for key in keys}
    return {key: svg.shorten(key, 22) for key in keys}


def _layers(layers):
    inside = [score for score in layers if score.block is not None]
    loose = sorted((s for s in layers if s.block is None), key=lambda s: -(s.phi or 0))
    order = {score.unit: index for index, score in enumerate(layers)}
    dropped = max(0, len(loose) - MOST_LOOSE)
    loose = sorted(loose[:MOST_LOOSE], key=lambda s: order[s.unit])
    prefixes = {}
    for score in inside:
        end = score.unit.rfind(score.part) if score.part else -1
        prefixes[score.unit] = score.unit[:end] if end > 0 else f"block {score.block}"
    keys = list(dict.fromkeys(prefixes.values()))
    blocks = {prefixes[score.unit]: score.block for score in inside}
    labels = _row_labels(keys, blocks)
    return [(labels[prefixes[s.unit]], s.part, s) for s in inside], (loose, dropped)


def _panel(title, spoken, cells, loose, scale, kept, tried, salt):
    loose, dropped = loose or ((), 0)
    rows = list(dict.fromkeys(row for row, _, _ in cells))
    columns = list(dict.fromkeys(column for _, column, _ in cells))
    notes = [f"{words.count(dropped, 'more unit')} outside the blocks: see the table"] if dropped else []
    if len(columns) > MOST_COLUMNS:
        best = {}
        for _, column, score in cells:
            best[column] = max(best.get(column, 0.0), score.phi or 0.0)
        strongest = set(sorted(columns, key=lambda c: (-best[c], columns.index(c)))[:MOST_COLUMNS])
        notes.append(f"{len(columns) - MOST_COLUMNS} columns with lower scores: see the table")
        columns = [column for column in columns if column in strongest]
    if len(rows) > MOST_ROWS:
        notes.append(f"{len(rows) - MOST_ROWS} more rows: see the table")
        rows = rows[:MOST_ROWS]
    size = min(20.0, max(9.0, math.floor(300 / max(1, len(columns)))))
    turned = any(svg.text_width(column, 10) > size + 2 for column in columns)
    left = max([svg.text_width(row, 10) for row in rows] + [26]) + 8
    above = (max((svg.text_width(column, 10) for column in columns), default=0) + 8 if turned else 18) + (0 if turned else 14)
    loose_height = 18
    grid_height = len(rows) * size
    below = (loose_height * len(loose) + 10) if loose else 0
    loose_width = left + size + 8 + max([svg.text_width(_loose_label(s), 10) for s in loose] + [0])
    width = max(left + len(columns) * size + 4, loose_width, 120)
    top = above if rows else 4
    canvas = svg.Canvas(width, top + grid_height + below + 4)
    if rows:
        canvas.text(left - 6, top - 8, "block" if all(r.isdigit() for r in rows) else "", size=10, anchor="right", colour=svg.MUTED)
        if not turned:
            canvas.text(left + len(columns) * size / 2, 7, "head", size=10, anchor="center", colour=svg.MUTED)
    every = max(1, math.ceil(12 / size))
    for index, row in enumerate(rows):
        if index % every == 0:
            canvas.text(left - 6, top + (index + 0.5) * size, row, size=10, anchor="right", colour=svg.MUTED)
    step = 1 if turned else max(1, math.ceil(max([svg.text_width(c, 10) + 3 for c in columns] + [0]) / size))
    for index, column in enumerate(columns):
        if index % step == 0:
            canvas.text(left + (index + 0.5) * size, top - (4 if turned else 8), column, size=10,
                        anchor="left" if turned else "center", colour=svg.MUTED, turned=turned)  # fmt: skip
    row_of, column_of = {r: i for i, r in enumerate(rows)}, {c: i for i, c in enumerate(columns)}
    places = [(left + column_of[c] * size, top + row_of[r] * size, s) for r, c, s in cells if r in row_of and c in column_of]
    start = top + grid_height + (10 if rows else 0)
    places += [(left, start + index * loose_height, score) for index, score in enumerate(loose)]
    for index, score in enumerate(loose):
        canvas.text(left + size + 7, start + index * loose_height + size / 2, _loose_label(score), size=10, colour=svg.MUTED)
    for x, y, score in places:
        _cell(canvas, x, y, size, score, scale)
    for x, y, score in places:
        _outline(canvas, x, y, size, score, scale, kept, tried)
    return Figure(title, canvas.svg(_spoken_map(spoken, [s for _, _, s in places], kept), salt), "; ".join(notes))


def _loose_label(score):
    return svg.shorten(score.part or score.unit, 26)


def _cell(canvas, x, y, size, score, scale):
    share = scale(score.phi)
    title = f"{score.unit}: phi {words.plain(score.phi)}"
    if score.cosine is not None and share is not None:
        title += f", cosine {words.value(score.cosine, 'cosine')}"
    if score.status not in ("ok", ""):
        title += f", {score.status}"
    fill = svg.PAPER if share is None else svg.shade(share)
    canvas.rectangle(x + 0.5, y + 0.5, size - 1, size - 1, fill, edge=svg.RULE if share is None else "none", line=0.6, title=title)


def _outline(canvas, x, y, size, score, scale, kept, tried):
    if score.unit not in kept and score.unit not in tried:
        return
    dashed = score.unit in tried
    canvas.rectangle(x, y, size, size, edge=svg.FORGET, line=1.4 if dashed else 2.2, dashed=dashed)
    number = tried[score.unit] if dashed else kept[score.unit]
    if number is not None and size >= 12:
        canvas.text(x + size / 2, y + size / 2, str(number), size=9.5, anchor="center", bold=not dashed,
                    colour=svg.ink_on(scale(score.phi) or 0.0))  # fmt: skip


def _spoken_map(spoken, scores, kept):
    best = max(scores, key=lambda s: s.phi or 0.0)
    chosen = [score.unit for score in scores if score.unit in kept]
    text = f"Score map, {spoken or 'model'}: {words.count(len(scores), 'unit')}; highest phi {words.plain(best.phi)} at {best.unit}. "
    return text + (f"Edited: {words.listing(chosen)}." if chosen else "None of them was edited.")


def score_legend(data: ReportData) -> str:
    """The scale of phi and the outlines."""
    scale, (kept, tried) = Scale(data.scores), rounds_of_units(data)
    canvas = svg.Canvas(330, 54)
    step, left = 8, 66
    canvas.text(left - 6, 10, words.plain(scale.low, 2), size=10, anchor="right", colour=svg.MUTED)
    for level in range(svg.LEVELS):
        canvas.rectangle(left + level * step, 4, step, 12, svg.RAMP[level])
    canvas.text(left + svg.LEVELS * step + 6, 10, f"{words.plain(scale.high, 2)}  phi, log scale", size=10, colour=svg.MUTED)
    x = 2
    for shown, dashed, label in ((kept, False, "edited, with its round"), (tried, True, "tried, not kept")):
        if shown:
            canvas.rectangle(x, 32, 14, 14, edge=svg.FORGET, line=1.4 if dashed else 2.2, dashed=dashed)
            canvas.text(x + 20, 39, label, size=10, colour=svg.MUTED)
            x += 30 + svg.text_width(label, 10)
    if any(scale(score.phi) is None for score in data.scores):
        canvas.rectangle(x, 32, 14, 14, svg.PAPER, edge=svg.RULE, line=0.8)
        canvas.text(x + 20, 39, "score 0", size=10, colour=svg.MUTED)
    label = f"Legend: phi from {words.plain(scale.low, 2)} (light) to {words.plain(scale.high, 2)} on a log scale"
    return canvas.svg(label, "legend")


# -- the rounds

_LINES = ((svg.KEEP, "o", "-"), (svg.KEEP2, "s", (0, (5, 2))), (svg.INK, "D", (0, (2, 2))), (svg.MUTED, "^", (0, (1, 1.5))))


def round_plots(data: ReportData) -> list[Figure]:
    """The forget metric, and the kept metrics, before the edit and after every round."""
    if not data.rounds:
        return []
    plots, metric = [], forget_metric(data)
    if metric is not None:
        limits = {metric: data.targets.forget_target}
        plots.append(_round_plot(data, "To be forgotten", [metric], limits, "target", [(svg.FORGET, "o", "-")], True))
    kept = [name for name in kept_metrics(data) if _values(data, name)]
    if kept:
        plots.append(_round_plot(data, "To be kept", kept, dict(data.targets.floors), "floor", _LINES, False))
    return plots


def _values(data, name):
    found = [] if data.before.get(name) is None else [(0, data.before[name])]
    return found + [(r.round + 1, r.metrics[name]) for r in data.rounds if r.metrics.get(name) is not None]


def _round_plot(data, title, names, limits, limit_word, lines, from_zero):
    figure = svg.figure(440, 250)
    axes = figure.add_axes((50 / 440, 36 / 250, (440 - 50 - 14) / 440, (250 - 36 - 16 - 17 * len(names)) / 250))
    values = {name: _values(data, name) for name in names}
    terms = {name: words.term(data, name) for name in names}
    probes = [(position, probe) for entry in data.rounds for position, probe in _spread(entry)]
    shown = [y for points in values.values() for _, y in points] + [limits[n] for n in names if limits.get(n) is not None]
    low, high = _range(shown, [p.metrics.get(n) for _, p in probes for n in names], from_zero, terms[names[0]].kind)
    spoken, handles = [], []
    for (colour, marker, dash), name in zip(_cycle(lines, len(names)), names):
        limit, points = limits.get(name), values[name]
        if limit is not None:
            axes.axhline(limit, color=colour, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        for stable in (True, False):
            dots = [(x, p.metrics[name]) for x, p in probes if p.stable is stable and p.metrics.get(name) is not None]
            inside = [(x, y) for x, y in dots if low <= y <= high]
            if inside:
                axes.plot(*zip(*inside), linestyle="none", marker="." if stable else "x", markersize=5 if stable else 4,
                          markeredgewidth=0.9, color=colour, alpha=0.45, zorder=2)  # fmt: skip
            outside = [(x, low + 0.025 * (high - low)) for x, y in dots if y < low]
            if outside:
                axes.plot(*zip(*outside), linestyle="none", marker="v", markersize=4, color=colour, alpha=0.45, zorder=2)
        if points:
            handles += axes.plot(*zip(*points), color=colour, marker=marker, markersize=5.5, linewidth=1.8, linestyle=dash, zorder=3)
            entry = terms[name]
            spoken.append(f"{entry.label} {', '.join(words.value(y, entry.kind) for _, y in points)}"
                          + (f" ({limit_word} {words.value(limit, entry.kind)})" if limit is not None else ""))  # fmt: skip
            handles[-1].set_label(words.clean(entry.label) + (
                f" ({limit_word} {words.value(limit, entry.kind)})" if limit is not None else ""))  # fmt: skip
    last = max(entry.round for entry in data.rounds) + 1
    axes.set_xlim(-0.12 if last > 1 else -0.08, last + (0.12 if last > 1 else 0.08))
    ticks = list(range(0, last + 1, max(1, math.ceil(last / 8))))
    axes.set_xticks(ticks, ["before" if t == 0 else f"round {t}" if last <= 4 else str(t) for t in ticks])
    axes.set_ylim(low, high)
    _percent_ticks(axes, terms[names[0]].kind)
    _quiet(axes)
    if handles:
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.03, 1.0), frameon=False, fontsize=11, labelcolor=svg.INK,
                    handlelength=2.2, borderaxespad=0.2, borderpad=0.2, labelspacing=0.3)  # fmt: skip
    label = f"{title}, on validation, before the edit and after each round: {'; '.join(spoken)}."
    return Figure(title, svg.render(figure, label, f"rounds-{title}"))


def _cycle(lines, count):
    return [lines[index % len(lines)] for index in range(count)]


def _spread(entry):
    """Probes between the round before and their own, in the order they were made."""
    for index, probe in enumerate(entry.probes):
        yield entry.round + 0.12 + 0.76 * (index + 0.5) / len(entry.probes), probe


def _range(shown, probed, from_zero, kind):
    """What the axis spans: all accepted values and limits, and probes as long as they do not flatten these."""
    probed = [y for y in probed if y is not None]
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    if from_zero and low >= 0:
        low = 0.0
    span = max(high - low, 0.01 if kind == "share" else 1e-3)
    room = 0.0 if from_zero else 1.0
    low = min([low] + [y for y in probed if y >= low - room * span])
    high = max([high] + [y for y in probed if y <= high + 0.5 * span])
    pad = 0.06 * max(high - low, span)
    return low - pad, high + pad


def _percent_ticks(axes, kind):
    low, high = axes.get_ylim()
    raw = (high - low) / 5
    step = 10 ** math.floor(math.log10(raw))
    step = next(step * factor for factor in (1, 2, 5, 10) if step * factor >= raw * 0.999)
    ticks = [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    if kind == "share":
        ticks = [tick for tick in ticks if -1e-9 <= tick <= 1 + 1e-9]
        digits = max(0, -math.floor(math.log10(step) + 1e-9) - 2)
        labels = [f"{100 * tick:.{digits}f}%" for tick in ticks]
    else:
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        labels = [f"{tick:.{digits}f}".replace("-", words.MINUS) for tick in ticks]
    axes.set_yticks(ticks, labels)


def _quiet(axes):
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(svg.RULE)
    axes.tick_params(length=0, labelsize=11, labelcolor=svg.MUTED, pad=6)
    axes.grid(axis="y", color=svg.RULE, linewidth=0.7)
    axes.set_axisbelow(True)


# -- confusion


class ClassTable:
    """The classes worth showing: all, or with many the concept and those whose images or answers moved most."""

    def __init__(self, data: ReportData):
        self.names, folded = list(data.classes), [name.casefold() for name in data.classes]
        concept = data.request.concept.casefold()
        self.concept = folded.index(concept) if concept in folded else None
        self.shown, self.rest = list(range(len(self.names))), []
        if len(self.names) > MOST_CLASSES:
            order = sorted(self.shown, key=lambda c: (c != self.concept, -self._moved(data, c), c))
            self.shown, self.rest = sorted(order[: MOST_CLASSES - 1]), sorted(order[MOST_CLASSES - 1 :])

    def _moved(self, data, index):
        first, *others = data.confusion.values()
        size = range(len(self.names))
        return sum(abs(m[index][j] - first[index][j]) + abs(m[j][index] - first[j][index]) for m in others[:1] or [first] for j in size)

    @property
    def labels(self):
        return [self.names[index] for index in self.shown] + ([OTHERS] if self.rest else [])

    def reduce(self, matrix):
        groups = [[index] for index in self.shown] + ([self.rest] if self.rest else [])
        return [[sum(matrix[i][j] for i in rows for j in columns) for columns in groups] for rows in groups]


def confusion_plots(data: ReportData) -> list[Figure]:
    """One matrix a column of the report, on one scale: the share of each true class by predicted class."""
    if not data.confusion:
        return []
    table = ClassTable(data)
    return [_matrix(table, name, matrix, number) for number, (name, matrix) in enumerate(data.confusion.items())]


def _matrix(table, name, matrix, number):
    counts = table.reduce(matrix)
    labels = [svg.shorten(label, 14) for label in table.labels]
    concept = table.shown.index(table.concept) if table.concept in table.shown else None
    count = len(labels)
    size = min(26.0, max(11.0, math.floor(270 / count)))
    left = max(svg.text_width(label, 10.5) for label in labels) + 8
    turned = any(svg.text_width(label, 10.5) > size - 1 for label in labels)
    above = 18 + (left if turned else 14)
    canvas = svg.Canvas(left + count * size + 6, above + count * size + 4)
    canvas.text(left, 8, "predicted \u2192", size=10, colour=svg.MUTED)
    canvas.text(left - 6, 8, "true \u2193", size=10, anchor="right", colour=svg.MUTED)
    for index, label in enumerate(labels):
        own = {"colour": svg.FORGET if index == concept else svg.MUTED, "bold": index == concept, "size": 10.5}
        canvas.text(left - 6, above + (index + 0.5) * size, label, anchor="right", **own)
        canvas.text(left + (index + 0.5) * size, above - (5 if turned else 8), label, anchor="left" if turned else "center",
                    turned=turned, **own)  # fmt: skip
    for i, row in enumerate(counts):
        total = sum(row)
        for j, cell in enumerate(row):
            part = cell / total if total else 0.0
            title = f"{table.labels[i]} \u2192 {table.labels[j]}: {cell:,} of {total:,} ({words.value(part, 'share')})"
            x, y = left + j * size, above + i * size
            canvas.rectangle(x + 0.5, y + 0.5, size - 1, size - 1, svg.shade(part), title=title)
            text = str(cell)
            letters = min(10.0, (size - 3) / (0.6 * len(text)))
            if cell and size >= 15 and letters >= 6:
                canvas.text(x + size / 2, y + size / 2, text, size=round(letters, 1), anchor="center", colour=svg.ink_on(part))
    if concept is not None:
        canvas.rectangle(left, above + concept * size, count * size, size, edge=svg.FORGET, line=1.4)
    correct, total = sum(matrix[i][i] for i in range(len(matrix))), sum(map(sum, matrix))
    label = f"Confusion matrix of the {words.clean(name)} model: {correct:,} of {total:,} on the diagonal"
    if concept is not None and sum(counts[concept]):
        label += f"; {table.labels[concept]}: {counts[concept][concept]:,} of {sum(counts[concept]):,} named correctly"
    return Figure(words.heading(name), canvas.svg(label + ".", f"confusion-{number}"))
