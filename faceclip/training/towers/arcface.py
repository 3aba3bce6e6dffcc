"""Additive angular margin loss: Deng et al. 2019, "ArcFace", equation 3."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def arcface_logits(cosine: Tensor, labels: Tensor, *, margin: float, scale: float) -> Tensor:
    """Returns logits (B, C): scale·cos(θ + margin) for the labelled class, scale·cos θ for the others. cosine (B, C).

    Past θ = π − margin the curve would turn upwards again; there it continues as cos θ − margin·sin margin,
    as in the authors' code: the loss stays monotonic in θ.
    """
    picked = cosine.gather(1, labels[:, None]).squeeze(1).clamp(-1 + 1e-6, 1 - 1e-6)
    sine = (1 - picked.square()).sqrt()
    shifted = picked * math.cos(margin) - sine * math.sin(margin)
    shifted = torch.where(picked > -math.cos(margin), shifted, picked - margin * math.sin(margin))
    return scale * cosine.scatter(1, labels[:, None], shifted[:, None].to(cosine.dtype))


def arcface_loss(
    embeddings: Tensor, centers: Tensor, labels: Tensor, *, margin: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy of `arcface_logits` and the accuracy of the batch without margin.

    embeddings (B, E) and class centers (C, E) of any length, labels (B,) int64. Computed in fp32 whatever the
    autocast: cosines near 1 need more than bf16's 8 bits.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        cosine = F.normalize(embeddings.float(), dim=1) @ F.normalize(centers.float(), dim=1).T
        logits = arcface_logits(cosine, labels, margin=margin, scale=scale)
        accuracy = (cosine.detach().argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(logits, labels), accuracy


def margin_at(step: int, *, warmup: int, ramp: int, margin: float) -> float:
    """Returns the margin at a step: 0 for `warmup` steps, then rising linearly to `margin` in `ramp` steps."""
    if step < warmup:
        return 0.0
    return margin * min(1.0, (step - warmup) / max(1, ramp))
