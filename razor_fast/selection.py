"""K from scores: which units to edit. Arithmetic on a ScoreTable; the next piece is `step.py`.

    K = { u : phi(u) > tau }

The automatic threshold is a rule for outliers in the logarithm, because phi spans orders of magnitude:
tau = exp(median(log phi) + 3 * 1.4826 * MAD(log phi)) over units with phi > 0 (1.4826 * MAD estimates the standard
deviation of a normal distribution). Where no unit stands out, the best one alone is taken.

Units may overlap (a layer and its own heads). Going down by phi, a unit that overlaps one already taken is passed over.
"""

import math
from dataclasses import dataclass
from statistics import median

from .errors import ConfigError

__all__ = ["Selection", "select", "automatic_threshold"]


@dataclass(frozen=True)
class Selection:
    """Names of the chosen units by falling phi, the threshold in force, and why any candidate was passed over."""

    names: tuple
    threshold: float
    passed_over: dict

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)

    def __contains__(self, name):
        return name in self.names


def automatic_threshold(values):
    """tau of the outlier rule above for the positive phi values given; infinity when there is none."""
    logs = [math.log(v) for v in values if v > 0]
    if not logs:
        return math.inf
    centre = median(logs)
    return math.exp(centre + 3 * 1.4826 * median(abs(x - centre) for x in logs))


def select(scores, threshold="auto", *, count=None, maximum=None, kind=None, taken=(), without=()):
    """Choose units to edit.

    threshold: a number tau (phi > tau), or "auto". count: take exactly this many of the best instead (fewer only where
    fewer have phi > 0). maximum: at most this many. kind: "layer" or "head" to consider one kind only.
    taken: units already in K: not returned again, and nothing that overlaps them is. without: units to leave out.
    Returns a Selection; it is empty only when no unit is left with phi > 0.
    Raises ConfigError for a threshold, count or kind that makes no sense, NonFiniteError for non-finite scores.
    """
    if count is not None and count < 1:
        raise ConfigError(f"count is {count}; expected at least 1, or None to select by threshold")
    if kind not in (None, "layer", "head"):
        raise ConfigError(f"kind is {kind!r}; expected 'layer', 'head' or None for both")
    if isinstance(threshold, str) and threshold != "auto":
        raise ConfigError(f"threshold is {threshold!r}; expected a number or 'auto'")
    ranked = [row for row in scores.ranked(kind) if row.phi > 0]
    tau = automatic_threshold(row.phi for row in ranked) if threshold == "auto" else float(threshold)
    limit = count if count is not None else maximum if maximum is not None else len(ranked)
    chosen, passed_over = [], {}
    for row in ranked:
        if len(chosen) >= limit:
            break
        if row.unit in taken or row.unit in without:
            continue
        if count is None and row.phi <= tau and not (threshold == "auto" and not chosen and not taken):
            break
        clash = next((t for t in (*taken, *chosen) if scores.units.overlaps(row.unit, t)), None)
        if clash is not None:
            passed_over[row.unit] = f"overlaps {clash}, which has precedence"
            continue
        chosen.append(row.unit)
    return Selection(tuple(chosen), tau, passed_over)
