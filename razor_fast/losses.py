"""The losses of unlearning, as pure functions of tensors. No model, no data, no state.

Sign convention (docs/method.md): every loss is LOW when the concept is known. Unlearning ascends the forget loss and
descends the other two; the signs are put together in `step.py`, never here.
"""

import torch
import torch.nn.functional as F

from .errors import OperatorInputError

__all__ = ["info_nce", "cosine_embedding_loss", "prediction_loss", "similarity_drift"]


def info_nce(image_features, text_features, logit_scale, groups=None):
    """Symmetric InfoNCE of CLIP (Radford et al. 2021, arXiv 2103.00020), the retain loss.

    image_features, text_features: [B, E], unit rows. logit_scale: scalar, already exponentiated.
    groups: optional int64 [B]; samples of one group (the same caption, say) count as positives of each other, their
    target mass shared equally, instead of as each other's negatives. Returns a scalar.
    """
    _same_shape(image_features, text_features)
    if groups is not None and groups.shape != image_features.shape[:1]:
        raise OperatorInputError(f"groups has shape {list(groups.shape)}; expected [{len(image_features)}], one a pair")
    logits = logit_scale * image_features @ text_features.T
    if groups is None:
        target = torch.arange(len(logits), device=logits.device)
    else:
        same = (groups[:, None] == groups[None, :]).to(logits.dtype)
        target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def cosine_embedding_loss(image_features, text_features):
    """mean(1 - cos(image, text)) over matching pairs, the forget loss of SLUG and RAZOR. [B, E] each; scalar in [0, 2]."""
    _same_shape(image_features, text_features)
    return (1 - F.cosine_similarity(image_features, text_features, dim=-1)).mean()


def similarity_drift(similarities, frozen_similarities):
    """Mean squared drift of a similarity matrix from the frozen model's, the mismatch loss (RAZOR, arXiv 2603.14819).

    Both [B, C], same units (cosines, or logits). Zero, with a zero gradient, at the frozen weights.
    """
    _same_shape(similarities, frozen_similarities)
    return F.mse_loss(similarities, frozen_similarities)


def prediction_loss(predicted, target):
    """Mean squared error of a denoiser's prediction: noise, velocity, sample or flow (Ho et al. 2020, arXiv 2006.11239).

    Both [B, C, h, w]; scalar, computed in fp32. With the frozen model's prediction as the target it is the drift from it.
    """
    if predicted.shape != target.shape or not predicted.numel():
        raise OperatorInputError(
            f"two predictions of one shape were expected, got {list(predicted.shape)} and {list(target.shape)}"
        )
    return F.mse_loss(predicted.float(), target.float())


def _same_shape(a, b):
    if a.shape != b.shape or a.dim() != 2 or not a.numel():
        raise OperatorInputError(
            f"two non-empty matrices of one shape were expected, got {list(a.shape)} and {list(b.shape)}; "
            "pass one row of features for each pair"
        )
