"""Where a unit sits, read from its name alone: for logs, which name units but do not place them."""

from __future__ import annotations

import re

__all__ = ["places"]

_TOWERS = {"visual": "visual", "vision_model": "visual", "vision_tower": "visual", "visual_projection": "visual",
           "text": "text", "text_model": "text", "text_projection": "text", "text_encoder": "text",
           "text_decoder": "multimodal", "language_model": "text"}  # fmt: skip
_BLOCK = re.compile(
    r"(?:^|\.)(?:resblocks|cross_attn|blocks|transformer_blocks|layers|layer\d*|block|h|stages)\.\d+\.(?:blocks\.\d+\.)?"
)
_HEAD = re.compile(r"^(?P<part>[a-z]+)\.(?P<head>\d+)$")


def places(units) -> dict[str, dict]:
    """Unit name -> tower, block, part, head, by the rules of units.find_units as far as names tell.

    units: pairs (name, kind), in model order.
    """
    units = list(units)
    flat_text = any(name.startswith("visual.") for name, _ in units) and any(
        name.startswith("transformer.") for name, _ in units
    )
    depth, found = {}, {}
    for name, kind in units:
        tower, rest = _tower(name, flat_text)
        match = _BLOCK.search(rest)
        block, part = None, rest
        if match:
            blocks = depth.setdefault(tower, {})
            block = blocks.setdefault(rest[: match.end()], len(blocks))
            part = rest[match.end() :]
        head = None
        if kind == "head":
            ending = _HEAD.match(".".join(part.rsplit(".", 2)[-2:]))
            part, head = (ending["part"], int(ending["head"])) if ending else (part, None)
        found[name] = {"tower": tower, "block": block, "part": re.sub(r"[._]weight$", "", part), "head": head}
    return found


def _tower(name, flat_text):
    pieces = name.split(".")
    for place, piece in enumerate(pieces[:-1]):
        if piece in _TOWERS:
            return _TOWERS[piece], ".".join(pieces[place if piece.endswith("_projection") else place + 1 :])
    if pieces[-1] in _TOWERS:
        return _TOWERS[pieces[-1]], pieces[-1]
    return ("text" if flat_text else ""), name
