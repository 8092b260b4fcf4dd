"""The same seed gives the same edit for 1 and 2 threads, and the sums that made it differ are the right ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import SMALL, image_features, images, text_features, tokens
from torch import nn

from razor_fast.threads import same_for_any_threads

PROGRAM = """
import sys, hashlib
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(int(sys.argv[1]))
assert torch.get_num_threads() == int(sys.argv[1])
from test_clip import clip_task, colour_parts
from razor_fast.config import RazorConfig
from razor_fast.methods.razor import unlearn
for case in sys.argv[2:]:
    name, *include = case.split(",")
    task = clip_task(name, parts=colour_parts(counts=(40, 3, 3)), batch_size=64)
    config = RazorConfig(inner_steps=2, max_probes=1, max_rounds=1, initial_units=2, forget_target=-1,
                         retain_tolerance=0.5, include=include or None)
    outcome = unlearn(task, config)
    rows = [(row.unit, row.phi, row.cosine) for row in outcome.scores]
    print(case, outcome.edit.sha256, hashlib.sha256(repr(rows).encode()).hexdigest(), sorted(outcome.edit.units))
"""
# all parameters, and those whose sums torch splits among its threads
CASES = ("open_clip", "open_clip,*ln_*,*conv1*", "hf clip,*norm*,*patch_embedding*")


@pytest.fixture(scope="module")
def edits():
    """By number of threads: one line for each case."""
    found = {}
    for threads in (1, 2):
        # idle threads that spin would fight over the cores that other test runs use
        env = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(tests=str(Path(__file__).parent)), str(threads), *CASES],
            cwd=Path(__file__).parent.parent, env=env, timeout=300, text=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found[threads] = done.stdout.splitlines()
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_same_edit_for_one_and_two_threads(edits, case):
    one, two = (next(line for line in edits[n] if line.startswith(case + " ")) for n in (1, 2))
    assert one == two


def gradients(model, mode, threads=1, masked=False):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name, p in model.named_parameters():
            p.grad = None
            p.requires_grad_(not (masked and name.endswith("bias")))
        loss = (image_features(model, images(model, 64)) ** 2).mean() + (
            text_features(model, tokens(model, 64)) ** 2
        ).mean()
        if mode:
            with same_for_any_threads():
                loss.backward()
        else:
            loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["open_clip", "hf clip", "hf siglip", "open_clip custom", "open_clip timm"])
def test_gradients_are_those_of_torch_and_equal_for_any_threads(name, masked):
    model = SMALL[name]()
    plain, ours = gradients(model, False, masked=masked), gradients(model, True, masked=masked)
    assert set(plain) == set(ours)
    scale = max(g.abs().max().item() for g in plain.values())
    for key in plain:
        torch.testing.assert_close(ours[key], plain[key], rtol=1e-4, atol=scale * 1e-6)
    two = gradients(model, True, threads=2, masked=masked)
    assert [key for key in ours if not torch.equal(ours[key], two[key])] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("affine", ["both", "weight", "none"])
def test_layer_norm(dtype, affine):
    norm = nn.LayerNorm((3, 8), elementwise_affine=affine != "none", bias=affine == "both", dtype=dtype)
    x = torch.randn(40, 3, 8, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.linspace(-1, 2, 24, dtype=dtype).reshape(3, 8)

    def run(mode):
        for p in (x, *norm.parameters()):
            p.grad = None
        loss = (norm(x) * weight).sum()
        if mode:
            with same_for_any_threads():
                loss.backward()
        else:
            loss.backward()
        return [p.grad.clone() for p in (x, *norm.parameters())]

    ours, plain = run(True), run(False)
    norm.double()
    x = x.detach().double().requires_grad_()
    for mine, theirs, exact in zip(ours, plain, run(False)):
        assert mine.dtype == theirs.dtype == dtype and mine.shape == theirs.shape
        error, tight = (mine.double() - exact).abs().max(), 1e-2 if dtype == torch.bfloat16 else 1e-6
        assert error <= tight * exact.abs().max()
        assert error <= 1.5 * (theirs.double() - exact).abs().max() + 1e-6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options, size", [({"stride": 4}, 16), ({"stride": 2}, 16), ({"stride": 4, "padding": 1}, 16), ({"stride": 4}, 18),
                      ({"stride": 4, "groups": 3}, 16), ({"stride": 4, "dilation": 2}, 19)],
)  # fmt: skip
def test_convolution(options, size, bias):
    """The first is a patch embedding; the others are left to torch, and must not be taken for one."""
    layer = nn.Conv2d(3, 6, 4, bias=bias, **options)
    x = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def run(mode):
        for p in (x, *layer.parameters()):
            p.grad = None
        loss = layer(x).square().sum()
        if mode:
            with same_for_any_threads():
                loss.backward()
        else:
            loss.backward()
        return [p.grad.clone() for p in (x, *layer.parameters())]

    for ours, plain in zip(run(True), run(False)):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
