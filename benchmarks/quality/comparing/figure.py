"""Forget accuracy against retain accuracy of every method, each request a dot, each mean a mark with its spread."""

from statistics import mean

from matplotlib.figure import Figure

from .bars import paired, shared
from .section import NAMES, SHARES, TITLES, kept_column

__all__ = ["forget_against_retain"]

OURS, YARDSTICKS = "#c1440e", {"original": "black", "retrained": "#2e7d32"}
OTHERS = ("#4c566a", "#2e6f95", "#6a994e", "#8e5572", "#b08900", "#00798c", "#7b88a1", "#a3b1c2", "#555b6e")
MARKERS = "osD^vP*Xhd<>8p"


def forget_against_retain(data, rows):
    """matplotlib Figure of the rows of a comparison. Best is where the retrained model is, not the corner.

    On those requests alone that all subjects were measured on."""
    rows = shared(rows)
    count = len({(row["concept"], row["seed"]) for row in rows})
    retain = kept_column(rows)
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot(xlabel="forget accuracy, %", ylabel=f"{SHARES[retain]}, %")
    others = iter(OTHERS)
    subjects = sorted(dict.fromkeys(row["subject"] for row in rows), key=list(NAMES).index)
    for subject, marker in zip(subjects, MARKERS):
        x, y = ([100 * v for v in paired(rows, column, subject)] for column in ("forget_accuracy", retain))
        if not x or len(x) != len(y):
            continue
        ours = subject == "razor"
        colour = OURS if ours else YARDSTICKS[subject] if subject in YARDSTICKS else next(others)
        axes.plot(x, y, ".", color=colour, alpha=0.35, markersize=4)
        spread = [[[mean(v) - min(v)], [max(v) - mean(v)]] for v in (x, y)]
        axes.errorbar(mean(x), mean(y), spread[1], spread[0], marker=marker, color=colour, markersize=9 if ours else 7,
                      linewidth=0.8, capsize=2, zorder=3 if ours else 2, label=NAMES[subject])  # fmt: skip
    axes.set_title(f"forgetting one class of {TITLES[data]}, test data, {count} request{'s' if count != 1 else ''}", fontsize=10)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.25)
    return figure
