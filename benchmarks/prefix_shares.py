"""What a probe could spare, counted: multiplications of each part of a pass, on the meta device, without weights.

    python -m benchmarks.prefix_shares

The figures of docs/method.md and docs/vlm.md. Stable Diffusion 1.5, one image of 512 pixels in 20 steps with guidance: what the
text encoder takes of it, and what the blocks before an edited one take of the first step, whose input no edit changes.
LLaVA-1.5-7B, one question of 640 tokens, 576 of them the image's: what the vision tower takes, and a layer of the language model.
"""

from __future__ import annotations

import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

STEPS = 20


def count(run) -> dict[str, int]:
    """Multiplications and additions by module name, of a call on the meta device; "Global" is all."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        run()
    return {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}


def diffusion() -> dict[str, float]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    step = count(lambda: unet(torch.empty(2, 4, 64, 64), torch.empty(2), torch.empty(2, 77, 768)))
    whole = STEPS * step["Global"]
    found = {"text encoder, of the whole image": count(lambda: text(torch.empty(1, 77, dtype=torch.long)))["Global"] / whole}
    blocks = [*(f"down_blocks.{n}" for n in range(4)), "mid_block", *(f"up_blocks.{n}" for n in range(4))]
    before = 0
    for name in blocks:
        if name in ("mid_block", "up_blocks.3"):
            found[f"blocks before {name} in the first step, of {STEPS} steps"] = before / whole
        before += step[f"UNet2DConditionModel.{name}"]
    return found


def llava() -> dict[str, float]:
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

    with torch.device("meta"):
        vision = CLIPVisionModel(CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                                                  num_attention_heads=16, image_size=336, patch_size=14))  # fmt: skip
        language = LlamaModel(LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                                          num_attention_heads=32))  # fmt: skip
    image = count(lambda: vision(torch.empty(1, 3, 336, 336)))["Global"]

    def ask():  # a mask of its final shape, so that none is made from values
        language(inputs_embeds=torch.empty(1, 640, 4096), attention_mask=torch.empty(1, 1, 640, 640), use_cache=False)

    words = count(ask)["Global"]
    return {"vision tower, of the whole": image / (image + words), "a layer of the language model": words / 32 / (image + words)}


def main() -> int:
    for model, found in (("Stable Diffusion 1.5", diffusion()), ("LLaVA-1.5-7B", llava())):
        for what, share in found.items():
            print(f"{model}: {what}: {share:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
