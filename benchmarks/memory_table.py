"""The table of docs/memory.md: what a scoring pass takes beside the weights, by estimate, and on which card it fits.

    python -m benchmarks.memory_table

Real sizes on the meta device: nothing is built and nothing computed. The gigabytes are what benchmarks.memory would find; a card
counts as holding a pass that leaves a twentieth of it free.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.memory import build, options
from razor_fast.recorder import MODES
from razor_fast.recording.estimate import dry_run

CASES = ("ViT-L-14", "ViT-bigG-14", "LLaVA-NeXT-8B")
CARDS = (16, 24, 48, 80)
SPARE = 0.95


def main():
    print("| model | weights | mode | peak above them | fits on |")
    print("|---|---|---|---|---|")
    for name in CASES:
        scoring = build(name, "meta")
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
        sys.exit(main())
