"""The table of docs/memory.md: what a scoring pass takes beside the weights, by estimate, and on which card it fits.

    python -m benchmarks.memory_table [NAME]...

Real sizes on the meta device: nothing is built and nothing computed. The gigabytes are what benchmarks.memory would find; a card
counts as holding a pass that leaves a twentieth of it free. Denoisers alone, one image a side at their native size, checkpointed:
text encoders and VAE of a pipeline come to the weights.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.memory import Pass, build, options, units_of
from benchmarks.shapes.build import build as build_shapes
from razor_fast import losses
from razor_fast.recorder import MODES
from razor_fast.recording.estimate import dry_run

# denoiser -> channels and side of a latent, tokens and width of the text, width of the pooled text
DENOISERS = {
    "SD-1.5-UNet": ((4, 64), (77, 768), None),
    "SDXL-UNet": ((4, 128), (77, 2048), 1280),
    "SD3-medium": ((16, 128), (333, 4096), 2048),
}
CASES = ("ViT-B-32", "ViT-L-14", "ViT-bigG-14", *DENOISERS, "LLaVA-1.5-7B", "LLaVA-NeXT-8B")
CARDS = (16, 24, 48, 80)
SPARE = 0.95


def denoiser(name):
    """A Pass over a denoiser in bf16: the mean squared error of its prediction."""
    model = build_shapes(name).to(torch.bfloat16)
    model.enable_gradient_checkpointing()
    (channels, side), text, pooled = DENOISERS[name]

    def given(*shape):
        return torch.zeros(1, *shape, dtype=torch.bfloat16)

    def loss():
        told = {"encoder_hidden_states": given(*text)}
        if name == "SD3-medium":
            told["pooled_projections"] = given(pooled)
        elif pooled:
            told["added_cond_kwargs"] = {"text_embeds": given(pooled), "time_ids": given(6)}
        noisy = given(channels, side, side)
        return losses.prediction_loss(model(noisy, timestep=torch.tensor([500]), return_dict=False, **told)[0], noisy)

    return Pass(model, units_of(model), loss, loss)


def main(names):
    print("| model | weights | mode | peak above them | fits on |")
    print("|---|---|---|---|---|")
    for name in names or CASES:
        scoring = denoiser(name) if name in DENOISERS else build(name, "meta")
        weights = sum(p.numel() * p.element_size() for p in scoring.model.parameters())
        kind = str(next(scoring.model.parameters()).dtype).removeprefix("torch.")
        for mode in MODES:
            peak = dry_run(scoring.model, scoring.units, scoring.forget, scoring.retain, mode, **options(mode))
            cards = [card for card in CARDS if weights + peak <= SPARE * card * 2**30]
            fits = f"{cards[0]} GB and more" if cards else "none of these"
            print(f"| {name}, {kind} | {weights / 1e9:.2f} GB | {mode} | {peak / 1e9:.2f} GB | {fits} |", flush=True)
    return 0


if __name__ == "__main__":
    with torch.random.fork_rng(devices=[]):
        sys.exit(main(sys.argv[1:]))
