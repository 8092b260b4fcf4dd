"""What a run has spent: passes through the model, bytes scored, and the time in each of them. Knows no model."""

import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

__all__ = ["LoopCost"]


@dataclass
class LoopCost:
    """forwards, backwards: micro-batches that went through the model for gradients, there and back. evaluations: passes over the
    validation part, probes among them. scored_bytes: parameters and gradients read by scoring. seconds: by what they went into
    ("first evaluation", "gradients", "evaluation", "scoring"); what a run spent besides is the loop's own."""

    forwards: int = 0
    backwards: int = 0
    evaluations: int = 0
    probes: int = 0
    scored_bytes: int = 0
    seconds: dict = field(default_factory=dict)

    @contextmanager
    def timed(self, what):
        """Context: its time is added to `what`. Not to be nested."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began

    def report(self, total):
        """As a dict, with `shares` of `total` seconds by what they went into; "loop" is what is left."""
        spent = {what: self.seconds[what] for what in sorted(self.seconds)}
        spent["loop"] = max(total - sum(spent.values()), 0.0)
        return asdict(self) | {"shares": {what: s / total if total > 0 else 0.0 for what, s in spent.items()}}
