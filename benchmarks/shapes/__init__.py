"""The parameter shapes of the models that are timed. `python -m benchmarks.shapes ViT-B-32` writes them where open_clip is not.

A name that has a file here is read from it, so that a machine without open_clip times the same shapes; another is built by
open_clip on the device `meta`, without weights.
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent


def build(name: str) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape, in the model's order, from open_clip."""
    import open_clip

    model = open_clip.create_model(name, device="meta", load_weights=False)
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


def of(name: str) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape, from the file if there is one, else from open_clip."""
    path = FOLDER / f"{name}.json"
    if path.exists():
        return {n: tuple(shape) for n, shape in json.loads(path.read_text()).items()}
    return build(name)
