"""The step-size search on functions whose answer is known."""

from __future__ import annotations

import random

import pytest

from razor_fast.errors import ConfigError
from razor_fast.search import StepSearch


def run(search: StepSearch, stable, met=lambda step: False) -> list[float]:
    """The steps proposed until the search ends. Holds what is true of every search."""
    steps, good, bad = [], [], []
    while (step := search.propose()) is not None:
        assert search.lower <= step <= search.upper and step not in steps
        steps.append(step)
        (good if stable(step) else bad).append(step)
        search.tell(step, stable=stable(step), met=met(step))
        assert len(steps) <= search.max_probes
    assert search.propose() is None
    assert search.best is None or (search.best in good and search.best < min(bad, default=float("inf")))
    return steps


@pytest.mark.parametrize("first", [1.0, 1e-3])
@pytest.mark.parametrize("edge", [2.0**-5, 0.999, 1.0, 31.99, *(2 ** random.Random(3).uniform(-5, 5) for _ in range(20))])
def test_the_largest_stable_step_within_the_tolerance_in_ten_probes(edge, first):
    search = StepSearch(first)
    steps = run(search, lambda step: step <= edge * first)
    assert search.best <= edge * first <= search.tolerance * search.best
    assert len(steps) <= 10 and steps[0] == first


def test_doubling_then_bisection_and_halving_down():
    assert run(StepSearch(1.0, tolerance=1.3), lambda step: step < 3.2) == [1, 2, 4, 3, 3.5]
    assert run(StepSearch(1.0, tolerance=1.3), lambda step: step < 0.3) == [1, 0.5, 0.25, 0.375, 0.3125]
    assert run(StepSearch(1.0, growth=4, tolerance=2.4), lambda step: step < 5) == [1, 4, 16, 10, 7]


@pytest.mark.parametrize("seed", range(10))
def test_noise_is_answered_on_the_safe_side(seed):
    noise = {}

    def stable(step):
        return step * noise.setdefault(step, random.Random(f"{seed} {step}").uniform(0.8, 1.25)) < 5.0

    search = StepSearch(1.0)
    run(search, stable)
    assert 5 / 1.25 / 1.1 / 1.1 < search.best < 5 / 0.8


def test_never_unstable_ends_at_the_maximum_or_with_the_probes():
    search = StepSearch(1.0, max_probes=30)
    assert run(search, lambda step: True) == [2.0**n for n in range(11)] and search.best == 1024
    search = StepSearch(1.0, max_probes=4)
    assert run(search, lambda step: True) == [1, 2, 4, 8] and search.best == 8
    assert run(StepSearch(1.0, maximum=5), lambda step: True) == [1, 2, 4]


def test_no_stable_step_ends_at_the_minimum_without_a_best():
    search = StepSearch(1.0)
    assert run(search, lambda step: False) == [2.0**-n for n in range(9)]
    assert search.best is None
    assert run(StepSearch(1.0, minimum=0.3), lambda step: False) == [1, 0.5]
    assert run(StepSearch(1.0, max_probes=0), lambda step: True) == []


@pytest.mark.parametrize(
    "options, stable_below, met_between, steps, best",
    [
        ({}, 9, (1, 9), [1, 1.5], 1.5),  # lengthened once, and kept
        ({}, 1.2, (1, 9), [1, 1.5], 1),  # lengthened, found unstable, not kept
        ({}, 9, (1, 1.2), [1, 1.5], 1),  # lengthened, target missed again, not kept
        ({"safety": 1}, 9, (1, 9), [1], 1),  # not lengthened
        ({"maximum": 1.2}, 9, (1, 9), [1], 1),  # never above the maximum
        ({"max_probes": 1}, 9, (1, 9), [1], 1),  # nor beyond the probes
        ({}, 9, (1.5, 9), [1, 2, 3], 3),  # met after doubling
        ({}, 3.5, (2.5, 9), [1, 2, 4, 3], 3),  # met while bisecting; 4.5 is above a step known to be unstable
        ({}, 0.6, (0.4, 9), [1, 0.5, 0.75], 0.5),  # a step that meets the target and harms does not count
        ({}, 2.5, (2.75, 9), [1, 2, 4, 3, 2.5, 2.25, 2.375, 2.4375], 2.4375),  # never met: the largest stable one
    ],
)
def test_a_step_that_meets_the_target_ends_the_search_but_for_its_safety(
    options, stable_below, met_between, steps, best
):
    search = StepSearch(1.0, **({"tolerance": 1.03} | options))
    low, high = met_between
    assert run(search, lambda step: step < stable_below, lambda step: low <= step < high) == steps
    assert search.best == best


def test_contradictory_answers_narrow_the_bracket_to_the_safe_side():
    search = StepSearch(1.0)
    search.tell(1.0, stable=True)
    search.tell(2.0, stable=True, met=True)
    search.tell(1.5, stable=False)  # below two steps told stable, one of them with the target met
    assert search.best == search.stable == 1.0 and search.met is None and 1 < search.propose() < 1.5
    search.tell(3.0, stable=False)  # larger than what is known: nothing new
    assert 1 < search.propose() < 1.5
    search.tell(0.5, stable=False)
    assert search.best is None and search.propose() == 0.25

    search = StepSearch(1.0)
    search.tell(1.0, stable=False)
    search.tell(2.0, stable=True, met=True)  # above a step told unstable: not believed
    assert search.best is None and search.propose() == 0.5

    search = StepSearch(1.0)
    search.tell(1.0, stable=True)
    search.tell(0.7, stable=True)  # smaller than what is known: nothing new
    assert search.best == 1.0 and search.propose() == 2.0


@pytest.mark.parametrize(
    "options",
    [{"first": 0}, {"first": float("nan")}, {"first": float("inf")}, {"max_probes": -1}, {"growth": 1.0},
     {"tolerance": 1.0}, {"safety": 0.9}, {"growth": float("nan")}, {"minimum": 2}, {"minimum": 0}, {"maximum": 0.5}],
)  # fmt: skip
def test_options_that_make_no_sense(options):
    with pytest.raises(ConfigError, match="expected"):
        StepSearch(**({"first": 1.0} | options))
