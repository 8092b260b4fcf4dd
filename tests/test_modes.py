"""All modes give the float64 scores, on small versions of every supported architecture."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES

from razor_fast.recorder import ScoreRecorder, score
from razor_fast.recording.leaves import set_aside
from razor_fast.scoring import ScoreTable
from razor_fast.units import find_units

MODES = ("buffers", "stream", "lockstep")
pytestmark = pytest.mark.filterwarnings("ignore:.*have no head map")


# T5's table of distances gets a gradient that cancels to 1e-4 of its terms: fp32 forms it to four digits, in any mode
ILL_CONDITIONED = "*relative_attention_bias.weight"
ZERO = 1e-6  # of the largest norm: below it a gradient is zero but for rounding, as a key bias's is (softmax does not see it)


def units_of(model):
    names = dict(model.named_parameters())
    return find_units(model, exclude=(ILL_CONDITIONED,) if any("relative_attention_bias" in n for n in names) else ())


def sums_by_hand(units, forget, retain):
    """float64 [U, 4] from two dicts of gradients, None where there is none, slice by slice."""
    rows = []
    for unit in units:
        total = torch.zeros(4, dtype=torch.float64)
        for piece in unit.slices:
            cut = []
            for table in (units.parameters, forget, retain):
                tensor = table[piece.parameter]
                tensor = torch.zeros_like(units.parameters[piece.parameter]) if tensor is None else tensor
                matrix = tensor.detach().reshape(tensor.shape[0] if tensor.dim() else 1, -1).double()
                cut.append(matrix[piece.row : piece.row + piece.rows, piece.column : piece.column + piece.columns])
            t, f, r = cut
            total += torch.stack([(t * t).sum(), (f * f).sum(), (r * r).sum(), (f * r).sum()])
        rows.append(total)
    return torch.stack(rows)


def gradients(units, loss):
    return dict(zip(units.parameters, torch.autograd.grad(loss(), list(units.parameters.values()), allow_unused=True)))


def assert_same_scores(found, expected, tolerance):
    """Norms and phi within `tolerance`, relative; the inner product relative to the product of norms; the same 20 best."""
    found, expected = (ScoreTable(t.units, t.sums, alpha=0.5) for t in (found, expected))
    a, b = found.sums, expected.sums
    norms = b[:, :3].sqrt()
    floor = ZERO * norms.max(dim=0).values
    assert ((a[:, :3].sqrt() - norms).abs() <= torch.where(norms > floor, tolerance * norms, floor)).all()
    product = norms[:, 1] * norms[:, 2]
    assert ((a[:, 3] - b[:, 3]).abs() <= tolerance * product + floor[1] * floor[2]).all()
    for one, other in zip(found, expected):
        assert one.status == other.status or min(other.forget_norm, other.retain_norm) < 1e-12, one.unit
        # where a gradient, or 1 - cos, is all rounding, so is phi
        if other.forget_norm > floor[1] and other.retain_norm > floor[2] and 1 - other.cosine > 1e-2:
            assert one.phi == pytest.approx(other.phi, rel=tolerance), one.unit
    assert [r.unit for r in found.ranked()[:20]] == [r.unit for r in expected.ranked()[:20]]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_mode_gives_the_float64_scores(name):
    model, forget, retain = ARCHITECTURES[name](torch.float64)
    units = units_of(model)
    expected = sums_by_hand(units, gradients(units, forget), gradients(units, retain))
    model, forget, retain = ARCHITECTURES[name](torch.float32)
    units = units_of(model)
    expected = ScoreTable(units, expected)
    for mode in MODES:
        assert_same_scores(score(model, units, forget, retain, mode=mode), expected, 1e-5)


@pytest.mark.parametrize("name", ["open_clip", "FLUX MMDiT", "LLaVA tied"])
def test_every_mode_gives_the_scores_of_bf16_gradients(name):
    """Against the bf16 gradients that autograd forms, summed in float64. Without embeddings, whose dense bf16 gradients are
    rounded once a token: the modes that consume take them sparse and sum the tokens exactly."""
    model, forget, retain = ARCHITECTURES[name](torch.bfloat16)
    units = find_units(model)
    with set_aside(model, units):  # frozen as score() freezes: in bf16, kernels differ by what asks for a gradient
        expected = ScoreTable(units, sums_by_hand(units, gradients(units, forget), gradients(units, retain)))
    for mode in MODES:
        assert_same_scores(score(model, units, forget, retain, mode=mode), expected, 1e-3)


def test_the_kept_gradient_may_be_kept_in_bf16():
    model, forget, retain = ARCHITECTURES["open_clip"](torch.float32)
    units = units_of(model)
    expected = score(model, units, forget, retain)
    found = score(model, units, forget, retain, mode="stream", retain_dtype=torch.bfloat16)
    assert_same_scores(found, expected, 4e-3)
    assert not torch.equal(found.sums[:, 2], expected.sums[:, 2])


@pytest.mark.parametrize("mode", MODES)
def test_inside_the_users_own_training_stack(mode):
    model, forget, retain = ARCHITECTURES["open_clip"](torch.float32)
    units = units_of(model)
    expected = score(model, units, forget, retain)
    with ScoreRecorder(model, units, mode=mode) as recorder:
        if mode == "lockstep":
            with recorder.retain():
                retain_loss = retain()
            with recorder.forget():
                forget_loss = forget()
            with recorder.backward(forget_loss, retain_loss):
                (forget_loss + retain_loss).backward()
        else:
            with recorder.retain():
                retain().backward()
            with recorder.forget():
                forget().backward()
    assert_same_scores(recorder.scores(), expected, 1e-6)
    assert all(p.grad is None for p in model.parameters())
