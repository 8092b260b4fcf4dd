"""The loop, as a stream of events: score, choose K, step, measure; while the target is not met, rescore and grow K.

    for event in unlearn_events(task, config, run_directory="runs/seven"): ...

It calls recorder, selection, step and search, and a Task for losses and metrics; `run_directory.py` keeps what a killed
run needs. Every state it leaves is one that was validated: a probe is undone before the next, and a step that broke
what must be kept is never accepted. Whenever an event is handed out, and after an exception, Ctrl-C included, the model
holds the last accepted step.
"""

import math
import time
from contextlib import closing
from dataclasses import dataclass, field

from torch import Tensor

from .config import RazorConfig
from .errors import ModelError, NoGradientError, NonFiniteError
from .events import (
    Probed,
    RoundEnded,
    RoundStarted,
    RunEnded,
    RunStarted,
    Scored,
    StepAccepted,
    StepRejected,
    UnitsChosen,  # fmt: skip
)
from .judge import Judge
from .recorder import ScoreRecorder, backward_all
from .search import StepSearch
from .selection import select
from .step import StepState
from .threads import fixed_threads
from .units import DEFAULT_EXCLUDE, find_units

__all__ = ["LoopState", "unlearn_events"]

SIDES = ("forget", "retain", "mismatch")
SCORES_KEPT = 20  # rows in the Scored events after round 0


@dataclass
class LoopState:
    """Where a run stands between rounds; what run_directory.py saves. The flat buffers live in `step`."""

    round: int = 0
    chosen: list = field(default_factory=list)
    fruitless: list = field(default_factory=list)  # units whose best step was nil: not added again
    edited: list = field(default_factory=list)  # units that an accepted step moved
    unhelpful: int = 0  # rounds in a row that did not help
    before: dict = field(default_factory=dict)
    metrics: dict = field(default_factory=dict)
    probes: int = 0
    seconds: float = 0.0  # spent in rounds, over all the processes that took part
    step: StepState | None = None


def unlearn_events(task, config=None, *, units=None, run=None):
    """Run RAZOR on a task; yields events (events.py). The model of the task is edited in place.

    config: RazorConfig. units: a Units to choose from; default: find_units with the configuration's patterns.
    run: a run_directory.RunDirectory that logs, saves and resumes; default: nothing is kept on disk.
    The generator's return value (`result = yield from ...`) is the final LoopState.
    Raises before any change: ConfigError, ModelError, FrozenParameterError, and what the task's data raises.
    """
    config = config or RazorConfig()
    if units is None:
        units = find_units(
            task.model,
            layers=config.layers,
            heads=config.heads,
            include=config.include,
            exclude=DEFAULT_EXCLUDE if config.exclude is None else config.exclude,
            split_groups=config.split_groups,
        )
    units.check_model(task.model)
    if not len(units):
        raise ModelError("no unit is left to choose from; widen include, or narrow exclude")
    loop = _Loop(task, config, units, run)
    with closing(loop.events()) as events:
        for event in events:
            if run is not None:
                run.log(event)
            yield event
    return loop.state


@dataclass(frozen=True)
class Trial:
    """The best step found for some units: `scale` times a displacement (flat, all of K), with the metrics it gave."""

    members: list
    scale: float
    shares: dict
    displacement: Tensor
    metrics: dict


class _Loop:
    def __init__(self, task, config, units, run):
        self.task, self.config, self.units, self.run = task, config, units, run
        self.state = LoopState()
        self.recorder = ScoreRecorder(task.model, units, freeze_others=True)

    def events(self):
        s, config = self.state, self.config
        s.before = s.metrics = self.measure()
        self.require_finite(s.before)
        Judge(self.task, config, s.before)  # refuses what does not fit before a saved state is written to the model
        resumed = self.run.restore(s, self.units, self.rounding_seed) if self.run is not None else 0
        judge = self.judge = Judge(self.task, config, s.before)
        yield RunStarted(
            -1,
            self.task.describe(),
            config.model_dump(mode="json"),
            s.before,
            len(self.units),
            list(self.units.unknown_attention),
            resumed,
        )
        if judge.met(s.before):
            yield self.ended("already_met", "the forget target is met before any edit; nothing was changed")
            return
        outcome, message = (
            "max_rounds",
            f"the target was not reached in {config.max_rounds} rounds; the best state is kept",
        )
        if judge.met(s.metrics):
            outcome, message = "target_met", "the forget target is met"
        elif s.unhelpful >= config.patience:
            outcome, message = self.no_progress()
        while outcome == "max_rounds" and s.round < config.max_rounds:
            began, earlier = time.perf_counter(), s.metrics
            yield RoundStarted(s.round, list(s.chosen))
            chosen = yield from self.score_and_choose()
            if not s.chosen:
                outcome, message = self.no_unit()
                break
            yield from self.step(chosen)
            helped = judge.better(s.metrics, earlier)
            s.unhelpful = 0 if helped else s.unhelpful + 1
            seconds = time.perf_counter() - began
            s.seconds += seconds
            yield RoundEnded(s.round, s.metrics, helped, seconds)
            s.round += 1
            if judge.met(s.metrics):
                outcome, message = "target_met", "the forget target is met"
            elif s.unhelpful >= config.patience:
                outcome, message = self.no_progress()
            if self.run is not None:
                self.run.save(s)
        yield self.ended(outcome, message)

    def no_progress(self):
        return "no_progress", f"{self.config.patience} rounds in a row did not help; the best state so far is kept"

    def no_unit(self):
        if self.state.fruitless:
            return "no_progress", "no unit is left whose step forgets more within the tolerances; nothing was changed"
        if self.scores.ranked()[0].phi > 0:
            return "no_unit", f"no unit has phi above the threshold {self.config.threshold}; lower it, or use 'auto'"
        return "no_unit", "no unit has a forget gradient; check the forget set and the patterns"

    def ended(self, outcome, message):
        s = self.state
        totals = {"rounds": s.round, "probes": s.probes, "seconds": s.seconds}
        return RunEnded(s.round, outcome, message, s.before, s.metrics, list(s.edited), totals)

    @property
    def rounding_seed(self):
        return self.config.seed if self.config.rounding == "stochastic" else None

    def measure(self):
        with fixed_threads(self.task.model):
            found = {name: float(value) for name, value in self.task.evaluate("validation").items()}
        return self.units.wrapping.broadcast(found)  # all that is decided follows from these, so ranks cannot diverge

    def not_finite(self, metrics):
        """Names of the metrics that decide and are NaN or infinite."""
        deciding = (self.task.forget_metric, self.task.forget_signal, *self.task.retain_metrics)
        return [name for name in deciding if not math.isfinite(metrics.get(name, 0.0))]

    def require_finite(self, metrics):
        bad = self.not_finite(metrics)
        if bad:
            raise NonFiniteError(
                f"the validation metric {bad[0]} is {metrics[bad[0]]} before any edit; the model or its data is broken"
            )

    def score_and_choose(self):
        """Gradients at the current weights, scores, new units. Leaves the gradients gathered in state.step."""
        s, config, recorder = self.state, self.config, self.recorder
        recorder.clear()
        sides = SIDES if s.round > 0 else SIDES[:2]  # the mismatch gradient is zero at the frozen weights
        gradients = self.record(recorder, sides, 0)
        scores = self.scores = recorder.scores(alpha=config.alpha, eps=config.eps)
        if s.round == 0:
            found = select(
                scores,
                config.threshold,
                count=config.initial_units,
                without=s.fruitless,
                maximum=config.max_initial_units,
                by=config.selection,
                seed=config.seed,
            )
        elif config.grow and config.selection != "all":
            found = select(
                scores, count=1, taken=s.chosen, without=s.fruitless, by=config.selection, seed=config.seed + s.round
            )
        else:
            found = None
        new = self.units.wrapping.broadcast(list(found.names) if found else [])
        rows = scores.rows if s.round == 0 else scores.ranked()[:SCORES_KEPT]
        yield Scored(s.round, list(rows), found.threshold if found else math.nan, scores.counts(), self.losses)
        yield UnitsChosen(s.round, new, found.passed_over if found else {})
        chosen = [*s.chosen, *new]
        if chosen:
            s.step = StepState(self.units.subset(chosen), rounding_seed=self.rounding_seed, carry=s.step)
            self.set_direction(s.step, gradients)
        recorder.clear()
        s.chosen = chosen
        return new

    def record(self, recorder, sides, inner):
        """Gradients of the sides, each a dict parameter name -> tensor or None; their loss values go to self.losses."""
        config, s = self.config, self.state
        weights = {"forget": config.lambda_forget, "retain": config.lambda_retain, "mismatch": config.lambda_mismatch}
        self.losses = {}
        for side in sides:
            if inner and not weights[side]:
                continue
            draw = s.round * config.inner_steps + inner
            try:
                with getattr(recorder, side)(), fixed_threads(self.task.model):
                    self.losses[side] = backward_all(self.task.losses(side, draw, config.seed), side)
            except NoGradientError:
                if not inner:
                    raise
                # A side that reaches the model need not reach these few units (a text-only retain loss, a vision
                # layer): its term is then zero, as their status in the scores says.
        return {side: recorder.gradients(side) for side in sides if recorder.recorded(side)}

    def gradients(self, units, sides, inner):
        """The same on a few units only, with everything else frozen: the backward pass stops at the earliest of them."""
        return self.record(ScoreRecorder(self.task.model, units, freeze_others=True), sides, inner)

    def set_direction(self, step, gradients):
        c = self.config
        step.set_direction(
            gradients.get("forget"),
            gradients.get("retain"),
            gradients.get("mismatch"),
            lambda_forget=c.lambda_forget,
            rho=c.rho,
            lambda_retain=c.lambda_retain,
            lambda_mismatch=c.lambda_mismatch,
        )

    def walk(self, members):
        """Form the direction of some units: `inner_steps` short steps on them, each with fresh gradients, then back.

        With one inner step the direction is RAZOR's own gradient. More let g_r and g_m, which see only where the model
        stands, answer to where it is going: that is what bends the way around what must be kept.
        """
        s, config = self.state, self.config
        start, units = s.step.place(), self.units.subset(members)
        try:
            for index in range(config.inner_steps):
                if index:
                    self.set_direction(s.step, self.gradients(units, SIDES, index))
                theta, direction = s.step.unit_norms()
                length = math.hypot(*(direction[name] for name in members))
                if not length:
                    break
                share = config.inner_share * math.hypot(*(theta[name] for name in members)) / length
                s.step.accept(dict.fromkeys(members, share))
        finally:
            s.step.set_displacement(start)

    def search(self, label, members):
        """Probe how far along its direction a group may go. Returns its Trial; the model is back at the base."""
        s = self.state
        search, seen = StepSearch(1.0, max_probes=self.config.max_probes), {}
        theta, direction = s.step.unit_norms()
        shares = {name: direction[name] / theta[name] if theta[name] else 0.0 for name in members}
        while any(shares.values()) and (scale := search.propose()) is not None:
            try:
                s.step.apply(dict.fromkeys(members, scale))
                found = self.measure()
            finally:
                s.step.undo()
            s.probes += 1
            # A step so long that the metrics overflow is one that must not be taken, not the end of the run.
            finite = not self.not_finite(found)
            stable, met = finite and self.judge.stable(found), finite and self.judge.met(found)
            if stable:
                seen[scale] = found
            search.tell(scale, stable=stable, met=met)
            length = math.hypot(*(direction[n] for n in members)) / math.hypot(*(theta[n] for n in members))
            yield Probed(s.round, label, scale * length, found, stable, met)
        best = search.best
        if best is not None and not self.judge.met(seen[best]):
            # Short of the target, leave later rounds something to spend: their share of the tolerance is not used now.
            budget = min(1.0, (s.round + 1) / self.config.max_rounds)
            best = max((scale for scale, found in seen.items() if self.judge.stable(found, budget)), default=None)
        if best is None or not self.judge.better(seen[best], s.metrics):
            return None
        return Trial(
            members, best, {n: best * share for n, share in shares.items()}, s.step.gradients["forget"], seen[best]
        )

    def step(self, new):
        """Try each group of K from the same state, and accept the trial that forgets most and harms least, if any."""
        s = self.state
        groups = [(n, [n]) for n in s.chosen] if self.config.step == "per_unit" else [("joint", list(s.chosen))]
        first, coefficients = s.step.gradients, s.step.coefficients
        best = None
        for label, members in groups:
            s.step.gradients, s.step.coefficients = first, coefficients
            self.walk(members)
            trial = yield from self.search(label, members)
            if trial is None:
                s.fruitless += [n for n in members if n in new]
            elif best is None or self.judge.prefers(trial.metrics, best.metrics):
                best = trial
        if best is None:
            yield StepRejected(s.round, list(s.chosen), "no step size forgot more within the tolerances")
        else:
            s.step.gradients["forget"] = best.displacement
            s.step.accept(dict.fromkeys(best.members, best.scale))
            s.metrics = best.metrics
            s.edited += [n for n in best.members if n not in s.edited]
            yield StepAccepted(
                s.round, best.shares, {n: v for n, v in s.step.happened().items() if n in best.members}, best.metrics
            )
        keep = [n for n in s.chosen if n in s.edited or n not in s.fruitless]
        if keep != s.chosen:
            s.chosen = keep
            s.step = (
                StepState(self.units.subset(keep), rounding_seed=self.rounding_seed, carry=s.step) if keep else None
            )
