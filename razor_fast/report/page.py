"""The page: one HTML file that needs nothing else. Sections are functions of ReportData; an empty one is left out."""

from __future__ import annotations

import json
from string import Template

from . import plots, words
from .data import ReportData
from .style import style_sheet
from .verdict import forget_metric, judge, kept_metrics, reference_columns
from .words import esc

__all__ = ["page"]

MOST_SCORES = 150
MOST_EXAMPLES = 12
MOST_CAPTIONS = 3

# the policy makes the browser itself refuse whatever is not in the file
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
$header
$sections
<footer>Written by razor_fast$version. This file is complete: it loads nothing and runs no script.</footer>
</main>
</body>
</html>
""")


def page(data: ReportData) -> str:
    """The HTML of a report. Raises MissingPackageError without matplotlib."""
    sections = [(key, title, body) for key, title, make in SECTIONS if (body := make(data))]
    title = data.title or f"Unlearning \u201c{data.request.concept}\u201d"
    version = data.settings.get("versions", {}) if isinstance(data.settings.get("versions"), dict) else {}
    version = version.get("razor_fast") or version.get("razor-fast")
    return PAGE.substitute(
        title=esc(title), style=style_sheet(), header=_header(data, title, sections),
        version=f" {esc(version)}" if version else "",
        sections="\n".join(_section(*section) for section in sections))  # fmt: skip


def _section(key, title, body):
    return f'<section id="{key}" aria-labelledby="{key}-title">\n<h2 id="{key}-title">{esc(title)}</h2>\n{body}\n</section>'


def _header(data, title, sections):
    facts = [("Forget", data.request.concept), ("Model", data.request.model), ("Family", _family(data.request.family))]
    facts = "".join(f"<div><dt>{esc(name)}</dt><dd>{esc(text)}</dd></div>" for name, text in facts if text)
    links = "".join(f'<a href="#{key}">{esc(name)}</a>' for key, name, _ in sections)
    nav = f'\n<nav aria-label="Sections">{links}</nav>' if len(sections) > 1 else ""
    return (f'<header>\n<p class="kicker">Unlearning report</p>\n<h1>{esc(title)}</h1>\n<dl>{facts}</dl>{nav}\n</header>\n'
            f"{_verdict(data)}")  # fmt: skip


def _family(name):
    return {"clip": "CLIP", "vlm": "Vision-language model", "diffusion": "Diffusion"}.get(name, name)


# -- verdict


def _verdict(data):
    verdict = judge(data)
    text = "".join(f"<p>{esc(sentence)}</p>" for sentence in verdict.sentences)
    return (f'<section id="verdict" class="verdict {verdict.state}" aria-labelledby="verdict-title">'
            f'<h2 id="verdict-title">{esc(verdict.label)}</h2>{text}</section>\n{_keys(data)}')  # fmt: skip


def _keys(data):
    """The few numbers that most readers come for."""
    original, unlearned = reference_columns(data)
    names = [name for name in [forget_metric(data), *kept_metrics(data)[:2]] if name]
    items = []
    for name in names:
        entry = words.term(data, name)
        new = unlearned.metrics.get(name) if unlearned else None
        old = original.metrics.get(name) if original else None
        if new is not None:
            was = f"<small>was {esc(words.value(old, entry.kind))}</small>" if old is not None else ""
            items.append(f"<div><dt>{esc(entry.label)}, test</dt><dd>{esc(words.value(new, entry.kind))}{was}</dd></div>")
    if data.edit is not None and data.edit.share_of_model is not None:
        under = words.count(len(data.edit.units), "unit")
        items.append(f"<div><dt>Share of the model changed</dt><dd>{esc(words.share(data.edit.share_of_model))}"
                     f"<small>{under}</small></dd></div>")  # fmt: skip
    spent = data.totals.get("seconds")
    if isinstance(spent, (int, float)) and not isinstance(spent, bool):
        number, unit = words.seconds(spent).split(" ")
        rounds = data.totals.get("rounds")
        under = f"<small>{esc(words.count(int(rounds), 'round'))}</small>" if isinstance(rounds, (int, float)) else ""
        items.append(f"<div><dt>Time</dt><dd>{esc(number)} {esc({'seconds': 's', 'minutes': 'min', 'hours': 'h'}[unit])}{under}</dd></div>")
    return f'<dl class="keys">{"".join(items)}</dl>' if items else ""


# -- measurements


def _measurements(data):
    if not data.columns:
        return ""
    names = list(dict.fromkeys(name for column in data.columns for name in column.metrics))
    if not names:
        return ""
    first = [name for name in [forget_metric(data), *kept_metrics(data)] if name in names]
    names = first + [name for name in names if name not in first]
    original, unlearned = reference_columns(data)
    references = [column for column in data.columns if column not in (original, unlearned)]
    compared = [column for column in (original, *references) if unlearned is not None and column is not None]
    heads = [words.heading(column.name) for column in data.columns]
    heads += ["Change" if column is original else f"vs {column.name}" for column in compared]
    rows = [_metric_rows(data, name, compared, unlearned, len(heads) + 1) for name in names]
    intervals = any(column.intervals for column in data.columns)
    caption = "Measured on the test split, which took no part in the search. "
    if compared:
        caption += "Change: unlearned minus original; pp: percentage points. "
    if data.column("retrained") is not None:
        caption += "Retrained: the same model trained without the concept, the yardstick of unlearning. "
    caption += "In brackets: intervals." if intervals else ""
    return _table(["Metric", *heads], rows, caption, "metrics", raw=True)


def _metric_rows(data, name, compared, unlearned, width):
    entry = words.term(data, name)
    cells = []
    for column in data.columns:
        number = column.metrics.get(name)
        if number is None:
            cells.append('<td class="n unmeasured">not measured</td>')
            continue
        low, high = column.intervals.get(name, (None, None))
        interval = ""
        if low is not None and high is not None:
            interval = f"<small>[{esc(words.value(low, entry.kind))}, {esc(words.value(high, entry.kind))}]</small>"
        cells.append(f'<td class="n">{esc(words.value(number, entry.kind))}{interval}</td>')
    for column in compared:
        new, old = unlearned.metrics.get(name), column.metrics.get(name)
        over = ""
        if column is compared[0] and None not in (new, old, data.before.get(name), data.targets.floors.get(name)):
            over = " over" if old - new > data.before[name] - data.targets.floors[name] + 1e-9 else ""
        note = "<small>more than allowed</small>" if over else ""
        cells.append(f'<td class="n{over}">{esc(words.difference(new, old, entry.kind))}{note}</td>')
    hint = f"<small>{esc(words.arrow(entry))} {esc(words.hint(entry))}</small>" if words.hint(entry) else ""
    row = f'<tr class="value"><th scope="row">{esc(entry.label)}{hint}</th>{"".join(cells)}</tr>'
    note = f'<tr class="note"><td colspan="{width}"><span>{esc(entry.explanation)}</span></td></tr>' if entry.explanation else ""
    return f"<tbody>{row}{note}</tbody>"


# -- scores


def _scores(data):
    if not data.scores:
        return ""
    layers = sum(score.kind == "layer" for score in data.scores)
    parts = [words.count(number, noun) for number, noun in ((layers, "layer"), (len(data.scores) - layers, "attention head")) if number]
    text = (
        f"<p>Before anything was changed, every one of {words.listing(parts)} was scored. The score phi is high where the "
        "gradient of the concept is large for the size of the weights, and where following it does not disturb what is to "
        "be kept. Darker means higher; each square is one unit, named when the pointer rests on it."
    )  # fmt: skip
    if data.threshold is not None:
        text += f" Units above the threshold of {esc(words.plain(data.threshold))} were candidates for the first round."
    text = text.replace("Darker means higher", "Stronger colour means higher") + "</p>"
    maps = plots.score_maps(data)
    body = []
    for tower, panels in maps.items():
        name = {"visual": "Image tower", "text": "Text tower", "": "Model"}.get(tower, f"{words.heading(tower)} tower")
        figures = "".join(_figure(panel, f"{name}: {panel.note}" if panel.note else "") for panel in panels)
        body.append(f'<h3>{esc(name)}</h3>\n<div class="panels">{figures}</div>')
    return f'{text}\n{plots.score_legend(data)}\n{"".join(body)}\n{_score_table(data)}'


def _figure(panel, note=""):
    caption = f"<h4>{esc(panel.title)}</h4>"
    return f"<figure>{caption}{panel.svg}{f'<figcaption>{esc(note)}</figcaption>' if note else ''}</figure>"


def _score_table(data):
    kept, tried = plots.rounds_of_units(data)
    ranked = sorted(enumerate(data.scores), key=lambda pair: (-(pair[1].phi or 0.0), pair[0]))
    rows = []
    for rank, (_, score) in enumerate(ranked, 1):
        if rank > MOST_SCORES and score.unit not in kept and score.unit not in tried:
            continue
        state = "edited" if score.unit in kept else "tried" if score.unit in tried else ""
        cells = [("n", f"{rank:,}"), ("", f"<code>{esc(score.unit)}</code>"), ("n", esc(words.plain(score.phi))),
                 ("n", esc(words.plain(score.ratio))),
                 ("n", "" if score.cosine is None else esc(words.value(score.cosine, "cosine"))),
                 ("n", esc(words.plain(score.theta_norm))), ("n", esc(words.plain(score.forget_norm))),
                 ("n", esc(words.plain(score.retain_norm))), ("", esc(score.status)), ("", state)]  # fmt: skip
        rows.append("<tr>" + "".join(f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>" for kind, text in cells) + "</tr>")
    shown = f"{len(rows):,} of {len(data.scores):,} units" if len(rows) < len(data.scores) else f"all {len(rows):,} units"
    caption = ("By falling phi. Ratio: norm of the forget gradient over the norm of the weights. Cosine: between forget and "
               "retain gradient; +1 means that forgetting harms what is kept. ")  # fmt: skip
    caption += "The others are in scores.csv and report.json." if len(rows) < len(data.scores) else ""
    heads = ["#", "Unit", "phi", "Ratio", "Cosine", "Weights", "Forget gradient", "Retain gradient", "Status", "Edit"]
    table = _table(heads, rows, caption, numeric={0, 2, 3, 4, 5, 6, 7})
    return f"<details><summary>Scores of {shown}</summary>{table}</details>"


# -- rounds


def _rounds(data):
    if not data.rounds:
        return ""
    probes = sum(len(entry.probes) for entry in data.rounds)
    text = ("<p>After every round the model was measured on the validation split, which steers the search. "
            "Lines join the accepted states. Each faint mark is a step that was tried and measured, then kept or undone: "
            "a dot where everything stayed above its floor, a cross where something fell below; a triangle at the lower "
            f"edge stands for a value below the picture. Dotted lines are the target and the floors. {words.count(probes, 'probe')} in all.</p>")
    figures = "".join(_figure(plot) for plot in plots.round_plots(data))
    return f'{text}\n<div class="panels">{figures}</div>\n{_round_table(data)}'


def _round_table(data):
    metric, kept = forget_metric(data), kept_metrics(data)
    names = [name for name in [metric, *kept] if name]
    terms = [words.term(data, name) for name in names]

    def values(metrics):
        return "".join(f'<td class="n">{esc(words.value(metrics.get(n), t.kind))}</td>' for n, t in zip(names, terms))

    rows = [f'<tr><th scope="row">before</th><td></td><td></td><td class="n"></td>{values(data.before)}</tr>'] if data.before else []
    for entry in data.rounds:
        added = "<br>".join(f"<code>{esc(unit)}</code>" for unit in entry.units) or "none"
        moved = "<br>".join(f"<code>{esc(unit)}</code> {esc(words.share(step))}" for unit, step in entry.accepted.items())
        rows.append(f'<tr><th scope="row">{entry.round + 1}</th><td>{added}</td><td>{moved or "nothing"}</td>'
                    f'<td class="n">{len(entry.probes)}</td>{values(entry.metrics)}</tr>')  # fmt: skip
    caption = "Accepted: size of each unit\u2019s change, \u2016step\u2016 / \u2016weights\u2016. Metrics are those of the validation split."
    heads = ["Round", "Units added", "Accepted", "Probes", *(entry.label for entry in terms)]
    return f"<details><summary>Rounds in numbers</summary>{_table(heads, rows, caption, numeric=set(range(3, 10)))}</details>"


# -- confusion


def _confusion(data):
    if not data.confusion:
        return ""
    table = plots.ClassTable(data)
    text = "<p>Rows are the true classes of the test images, columns what the model calls them; numbers count images. "
    text += "Colour is the share of the row. "
    if table.rest:
        text += (f"Of {len(table.names)} classes, the {len(table.shown)} with the concept and the largest changes are shown; "
                 f"the rest stand together as \u201c{plots.OTHERS}\u201d. ")  # fmt: skip
    figures = "".join(_figure(plot) for plot in plots.confusion_plots(data))
    return f'{text}</p>\n<div class="panels">{figures}</div>\n{_answers(data, table)}\n{_per_class(data, table)}'


def _answers(data, table):
    """What images of the concept are called, in words."""
    if table.concept is None:
        return ""
    rows = []
    for name, matrix in data.confusion.items():
        row = matrix[table.concept]
        total = sum(row)
        best = sorted((index for index, number in enumerate(row) if number), key=lambda i: (-row[i], i))[:4]
        answers = ", ".join(f"{esc(table.names[i])} {esc(words.value(row[i] / total, 'share'))}" for i in best)
        rows.append(f'<tr><th scope="row">{esc(words.heading(name))}</th><td>{answers or "no images"}</td></tr>')
    total = sum(next(iter(data.confusion.values()))[table.concept])
    caption = f"What {words.count(total, 'test image')} of \u201c{data.request.concept}\u201d are called, most frequent first."
    return _table(["Model", "Answers"], rows, caption)


def _per_class(data, table):
    names = list(data.confusion)
    rows = []
    for index, label in enumerate(table.names):
        cells = []
        for name in names:
            row = data.confusion[name][index]
            cells.append(row[index] / sum(row) if sum(row) else None)
        text = "".join(f'<td class="n">{esc(words.value(c, "share")) if c is not None else "no images"}</td>' for c in cells)
        if len(cells) > 1:
            text += f'<td class="n">{esc(words.difference(cells[1], cells[0], "share"))}</td>'
        concept = " (concept)" if index == table.concept else ""
        rows.append(f'<tr><th scope="row">{esc(label)}{concept}</th>{text}</tr>')
    heads = ["Class", *map(words.heading, names), *(["Change"] if len(names) > 1 else [])]
    caption = "Share of each class\u2019s test images that are named correctly."
    table = _table(heads, rows, caption, numeric=set(range(1, len(heads))))
    return f"<details><summary>Accuracy class by class</summary>{table}</details>"


# -- examples


def _examples(data):
    if not data.examples:
        return ""
    parts = [f"<p>Test images with the captions each model finds closest, and their cosines. "
             f"The true caption is in bold wherever it is among them.</p>"]  # fmt: skip
    sides = (("forget", f"Images of \u201c{data.request.concept}\u201d, to be forgotten"), ("retain", "Everything else, to be kept"))
    for side, title in sides:
        examples = [example for example in data.examples if example.side == side]
        if examples:
            items = "".join(_example(example, side) for example in examples[:MOST_EXAMPLES])
            parts.append(f'<h3>{esc(title)}</h3>\n<ul class="examples">{items}</ul>')
            if len(examples) > MOST_EXAMPLES:
                parts.append(f'<p class="muted">{len(examples) - MOST_EXAMPLES} more in report.json.</p>')
    return "\n".join(parts)


def _example(example, side):
    answers = []
    for name, captions in example.captions.items():
        lines = []
        for caption, cosine in captions[:MOST_CAPTIONS]:
            mark = "b" if example.truth and caption.casefold() == example.truth.casefold() else "i"
            number = "" if cosine is None else esc(words.value(cosine, "cosine"))
            lines.append(f"<span><{mark}>{esc(caption)}</{mark}><i>{number}</i></span>")
        answers.append(f"<dt>{esc(words.heading(name))}</dt><dd>{''.join(lines)}</dd>")
    alt = f"Test image: {example.truth}" if example.truth else f"Test image, {side} side"
    truth = f"<p>{esc(example.truth)}</p>" if example.truth else ""
    return f'<li><img src="{esc(example.image)}" alt="{esc(alt)}" width="96" height="96"><div>{truth}<dl>{"".join(answers)}</dl></div></li>'


# -- the edit


def _edit(data):
    edit = data.edit
    if edit is None:
        return ""
    text = "<p>Only the units below were changed, and only in the edit file named here; all other numbers of the model are left alone.</p>"
    if edit.outside_identical:
        text = "<p>Only the units below were changed. All other weights were compared before and after, and are identical to the last bit.</p>"
    elif edit.outside_identical is False:
        text = '<p class="over">Weights outside the units below differ from the original model. Do not use this edit.</p>'
    rows = [f'<tr><th scope="row"><code>{esc(unit.name)}</code></th><td class="n">{_optional(unit.elements)}</td>'
            f'<td class="n">{esc(words.share(unit.relative_change))}</td></tr>' for unit in edit.units]  # fmt: skip
    caption = "Relative change: \u2016new weights \u2212 old weights\u2016 / \u2016old weights\u2016, over the unit."
    table = _table(["Unit", "Numbers in it", "Relative change"], rows, caption, numeric={1, 2}) if rows else ""
    checked = {True: "yes, checked", False: "NO: the check failed", None: "not checked"}
    facts = [
        ("Numbers changed", f"{_optional(edit.elements)}" + (f", {esc(words.share(edit.share_of_model))} of the model"
                                                               if edit.share_of_model is not None else "")),
        ("Edit file", _code(edit.file)), ("SHA-256 of the edit", _code(edit.sha256)), ("Undo file", _code(edit.undo_file)),
        ("Undo restores every bit", checked[edit.reverted_bit_for_bit]),
        ("Rest of the model identical", checked[edit.outside_identical]),
    ]  # fmt: skip
    return text + "\n" + table + _facts(facts)


def _optional(number):
    return "not measured" if number is None else f"{number:,}"


def _code(text):
    return f"<code>{esc(text)}</code>" if text else ""


def _facts(facts):
    return '<dl class="facts">' + "".join(f"<dt>{esc(name)}</dt><dd>{text}</dd>" for name, text in facts if text) + "</dl>"


# -- settings and notes


def _settings(data):
    simple, nested = [], []
    for name, value in {**data.settings, "totals": data.totals}.items():
        if isinstance(value, dict):
            if value:
                nested.append((name, value))
        elif value is not None and value != []:
            simple.append((name, _setting(value)))
    parts = [_facts([(_label(name), text) for name, text in simple])] if simple else []
    for name, value in nested:
        facts = _facts([(key, _setting(item)) for key, item in value.items()])
        title = esc(_label(name))
        long = len(value) > 8
        parts.append(f"<details><summary>{title}</summary>{facts}</details>" if long else f"<h3>{title}</h3>{facts}")
    return "\n".join(parts)


def _label(name):
    return words.heading(name.replace("_", " "))


def _setting(value):
    if value is None:
        return '<span class="muted">not set</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return esc(f"{value:.6g}")
    if isinstance(value, (dict, list)):
        if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
            return esc(", ".join(map(str, value))) or '<span class="muted">none</span>'
        return f"<code>{esc(json.dumps(value, ensure_ascii=False))}</code>" if value else '<span class="muted">none</span>'
    return esc(value)


def _notes(data):
    if not data.notes:
        return ""
    return "<ul>" + "".join(f"<li>{esc(note)}</li>" for note in data.notes) + "</ul>"


def _table(heads, rows, caption, kind="", numeric=(), raw=False):
    """A table with its caption, free to scroll sideways on a narrow screen. raw: rows come with their own tbody."""
    numeric = set(range(1, len(heads))) if raw else numeric
    top = "".join(f'<th scope="col"{" class=n" if i in numeric else ""}>{esc(head)}</th>' for i, head in enumerate(heads))
    body = "".join(rows) if raw else f"<tbody>{''.join(rows)}</tbody>"
    named = f' class="{kind}"' if kind else ""
    return (f'<div class="scroll"><table{named}><caption>{esc(caption.strip())}</caption><thead><tr>{top}</tr></thead>{body}</table></div>')


SECTIONS = (
    ("measurements", "Measurements", _measurements),
    ("answers", "What it answers now", _confusion),
    ("examples", "Example images", _examples),
    ("scores", "Where the concept sits", _scores),
    ("rounds", "Round by round", _rounds),
    ("edit", "What was changed", _edit),
    ("settings", "Settings and versions", _settings),
    ("notes", "Notes", _notes),
)
