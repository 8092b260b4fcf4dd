"""The step-size search: doubling, then bisection, as a pure object. It knows nothing of models.

    search = StepSearch(first=0.1, max_probes=10)
    while (step := search.propose()) is not None:
        search.tell(step, stable=..., met=...)
    search.best          # the largest stable step, or None

`stable`: what must be kept is kept at this step. `met`: the forget target is reached. Steps double from the first one
while stable; after the first unstable one, or halving down when the first is already unstable, the bracket between the
largest stable and the smallest unstable step is bisected. The smallest step found that is stable and meets the target
ends the search, but for one more probe: since it was met on few validation samples, it is lengthened by `safety`, and
that step is kept where it is stable and meets the target too.
"""

import math

from .errors import ConfigError

__all__ = ["StepSearch"]


class StepSearch:
    """Find the largest stable step in at most `max_probes` evaluations.

    first: first step, > 0. growth: factor while doubling, > 1. tolerance: stop when the bracket's ends are within
    this ratio. safety: factor of the last probe once the target is met (1: none). minimum: give up below
    first * minimum. maximum: never go above first * maximum.
    """

    def __init__(
        self, first, *, max_probes=10, growth=2.0, tolerance=1.1, safety=1.5, minimum=2.0**-8, maximum=2.0**10
    ):
        if not (first > 0 and math.isfinite(first)):
            raise ConfigError(f"the first step is {first}; expected a positive, finite number")
        if not (max_probes >= 0 and growth > 1 and tolerance > 1 and safety >= 1 and 0 < minimum <= 1 <= maximum):
            raise ConfigError(
                f"max_probes {max_probes}, growth {growth}, tolerance {tolerance}, safety {safety}, minimum {minimum}, "
                f"maximum {maximum}: expected >= 0, > 1, > 1, >= 1, in (0, 1] and >= 1"
            )
        self.safety = safety
        self.first, self.max_probes, self.growth, self.tolerance = first, max_probes, growth, tolerance
        self.lower, self.upper = first * minimum, first * maximum
        self.stable = self.unstable = None  # the bracket: largest stable, smallest unstable
        self.met = None  # the step to keep: stable, and meets the target
        self.history = []
        self._ended = False

    @property
    def best(self):
        """The step to keep: one that meets the target, with its safety; else the largest stable one; else None."""
        return self.met if self.met is not None else self.stable

    def propose(self):
        """The next step to evaluate, or None when the search has ended."""
        if len(self.history) >= self.max_probes or self._ended:
            return None
        if self.met is not None:
            self._ended = True
            step = self.met * self.safety
            inside = step <= self.upper and (self.unstable is None or step < self.unstable)
            return step if self.safety > 1 and inside else None
        if not self.history:
            return self.first
        if self.unstable is None:
            step = self.stable * self.growth
            return step if step <= self.upper else None
        if self.stable is None:
            step = self.unstable / self.growth
            return step if step >= self.lower else None
        if self.unstable / self.stable <= self.tolerance:
            return None
        return (self.stable + self.unstable) / 2

    def tell(self, step, *, stable, met=False):
        """Report what was found at `step`. A noisy answer that contradicts the bracket narrows it to the safe side."""
        self.history.append((step, bool(stable), bool(met)))
        if not stable:
            self.unstable = step if self.unstable is None else min(self.unstable, step)
            kept = [(s, good) for s, ok, good in self.history if ok and s < self.unstable]
            if self.stable is not None and self.stable >= self.unstable:
                self.stable = max((s for s, _ in kept), default=None)
            if self.met is not None and self.met >= self.unstable:
                self.met = max((s for s, good in kept if good), default=None)
        elif self.unstable is None or step < self.unstable:
            self.stable = step if self.stable is None else max(self.stable, step)
            if met:
                self.met = step
