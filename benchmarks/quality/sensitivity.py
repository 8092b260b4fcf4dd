"""The sweep of RAZOR's settings as a figure and as lines of docs/results.md. Reads the rows of sweep.py."""

from statistics import mean

from matplotlib.figure import Figure

from benchmarks.quality.sweep import VARIED
from razor_fast.config import RazorConfig

__all__ = ["sensitivity", "sweep_section"]

COLOURS = {"clip": "#c1440e", "vlm": "#2e6f95", "diffusion": "#6a994e"}


def losses(rows, task, parameter):
    """{value: losses, one a request} of a task and a parameter, in the order of VARIED."""
    some = [row for row in rows if row["task"] == task and row["parameter"] == parameter]
    found = {v: [float(row["loss"]) for row in some if float(row["value"]) == v] for v in map(float, VARIED[parameter])}
    return {value: each for value, each in found.items() if each}


def sensitivity(rows):
    """matplotlib Figure: loss against each parameter, one line a demo, dots for its requests; the default is marked."""
    parameters = [name for name in VARIED if any(row["parameter"] == name for row in rows)]
    columns = min(4, len(parameters))
    lines = -(-len(parameters) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.3 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for one, parameter in zip(axes, parameters):
        places = {float(value): place for place, value in enumerate(VARIED[parameter])}
        for task, colour in COLOURS.items():
            if found := losses(rows, task, parameter):
                one.plot([places[v] for v in found], [mean(each) for each in found.values()], color=colour, label=task)
                for value, each in found.items():
                    one.plot([places[value]] * len(each), each, ".", color=colour, alpha=0.5)
        default = places.get(float(getattr(RazorConfig(), parameter)))
        if default is not None:
            one.axvline(default, color="black", linestyle=":", linewidth=1)
        one.set_xticks(list(places.values()), [f"{value:g}" for value in places], fontsize=7)
        one.set_title(parameter, fontsize=9)
        one.grid(alpha=0.25)
    for one in axes[len(parameters) :]:
        one.set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    figure.supylabel("loss on validation data", fontsize=9)
    return figure


def sweep_section(rows, figure=None):
    """Lines of Markdown: of each demo and parameter the value that did best, beside the default."""
    lines = ["## The defaults", ""]
    requests = dict.fromkeys((row["task"], row["forget"], row["seed"]) for row in rows)
    listed = ", ".join(f"{task} ({forget}, seed {seed})" for task, forget, seed in requests)
    lines += [
        f"`python -m benchmarks.quality.sweep`: one setting of RAZOR at a time, around those of the demo, on validation data of "
        f"{listed}. The loss is what is left to forget plus what the retain metrics fell by (razor_fast.tuning.loss_of). In the "
        "figure a dotted line marks RazorConfig's default.", "",
    ]  # fmt: skip
    if figure is not None:
        lines += [f"![loss against each setting]({figure})", ""]
    lines += ["| demo | setting | default | its loss | best | its loss |", "|---|---|---|---|---|---|"]
    for task in COLOURS:
        for parameter in VARIED:
            found = {value: mean(each) for value, each in losses(rows, task, parameter).items()}
            if not found:
                continue
            default = float(getattr(RazorConfig(), parameter))
            best = min(found, key=lambda value: (found[value], value != default))
            own = f"{found[default]:.3f}" if default in found else ""
            lines.append(f"| {task} | {parameter} | {default:g} | {own} | {best:g} | {found[best]:.3f} |")
    return lines
