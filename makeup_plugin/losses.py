"""Objectives of the generator as pure functions: noise prediction, attention to masks, named attributes, features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.latents import from_unit_scale

IGNORED = -100  # class of what is not to be told, as in `F.cross_entropy`


def noise_prediction_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error in fp32, averaged per sample, times weights (B,), averaged over the batch."""
    if prediction.shape != target.shape:
        raise ConfigError(f"prediction is {tuple(prediction.shape)} but target is {tuple(target.shape)}")
    errors = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return (errors if weights is None else errors * weights).mean()


def semantic_alignment_loss(
    attention: Iterable[Tensor],
    masks: Tensor,
    tokens: Tensor,
    keep: Tensor | None = None,
    *,
    threshold: float = 0.5,
) -> Tensor:
    """Attention of the described words should cover the described regions (Face-MakeUp, semantic alignment).

    For each mask m with token set T: MSE of A[:, t] against m over t in T, plus MSE of the mean over T
    against m; mean over heads, pixels, tokens, masks and samples; summed over layers; fp32.

    Args:
        attention: per layer the text attention (B,heads,Q,L), Q a grid of the masks' shape.
        masks: (B,M,H,W) in [0,1]; reduced to each layer's grid by area and cut at `threshold`.
        tokens: (B,M,L) bool, the tokens of each mask's phrase.
        keep: (B,) bool; samples whose text was dropped must be false, they have no words to align.

    A mask without tokens, or that vanishes on a layer's grid, does not count. Zero when nothing counts.
    """
    total = masks.new_zeros((), dtype=torch.float32)
    with torch.autocast(masks.device.type, enabled=False):  # which would compute the sums over words in 16 bits
        for layer in attention:
            total = total + _layer_alignment(layer.float(), masks.float(), tokens, keep, threshold)
    return total


def _layer_alignment(layer: Tensor, masks: Tensor, tokens: Tensor, keep: Tensor | None, threshold: float) -> Tensor:
    queries, (tall, wide) = layer.shape[2], masks.shape[2:]
    height = round(math.sqrt(queries * tall / wide))
    width = round(queries / max(height, 1))
    if height * width != queries or abs(height * wide - width * tall) > max(tall, wide):
        raise ConfigError(f"attention has {queries} queries, which is no grid of the shape of masks {tall}×{wide}")
    if tokens.shape != (layer.shape[0], masks.shape[1], layer.shape[3]):
        raise ConfigError(
            f"tokens must be (batch, masks, context) = {(layer.shape[0], masks.shape[1], layer.shape[3])},"
            f" got {tuple(tokens.shape)}"
        )
    target = (F.adaptive_avg_pool2d(masks, (height, width)) >= threshold).float().flatten(2)  # (B,M,Q)
    counts = tokens.sum(dim=-1)
    valid = (counts > 0) & (target.amax(dim=-1) > 0)
    if keep is not None:
        valid = valid & keep.bool()[:, None]
    weights = tokens.float() / counts.clamp(min=1)[..., None]
    # Mean over t in T of (a_t - m)^2 = mean a_t^2 - 2 m mean a_t + m^2: never builds a tensor over masks x
    # tokens x pixels.
    mean = torch.einsum("bhql,bml->bhmq", layer, weights)
    square = torch.einsum("bhql,bml->bhmq", layer.square(), weights)
    goal = target[:, None]
    per_token = square - 2 * goal * mean + goal
    of_mean = (mean - goal).square()
    errors = (per_token + of_mean).mean(dim=(1, 3))  # (B,M): over heads and pixels
    return (errors * valid).sum() / valid.sum().clamp(min=1)


def attribute_loss(logits: Sequence[Tensor], classes: Tensor) -> Tensor:
    """Cross-entropy per attribute, averaged over all (B, A) classes that are not `IGNORED`; zero without any."""
    errors = torch.stack(
        [F.cross_entropy(one, classes[:, a], ignore_index=IGNORED, reduction="none") for a, one in enumerate(logits)],
        dim=1,
    )
    return errors.sum() / (classes != IGNORED).sum().clamp(min=1)


def feature_distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Mean over blocks and cells of the squared distance between features (B, C, h, w) of unit length along C, as in
    LPIPS (Zhang et al. 2018, arXiv:1801.03924, eq. 1) without its learned weights; in [0, 4]."""
    return torch.stack(
        [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(dim=1).mean()
            for a, b in zip(first, second, strict=True)
        ]
    ).mean()


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents (B,C,h,w) -> images (B,3,H,W) in [0,1], with gradients."""
    images = vae.decode(from_unit_scale(vae, latents), return_dict=False)[0]
    return (images / 2 + 0.5).clamp(0, 1)
