"""Balances the variances of latent channels, by an exact change of the autoencoder's two 1 × 1 convolutions.

Latents of a lightly regularized autoencoder have a steep spectrum: in the autoencoder of 128 px one direction of its 16
has two thirds of the variance, and eleven together have a tenth. Directions of little variance hold detail, which a
diffusion model learns only at the lowest noise levels, where few training samples and few sampling steps fall. Scaling
each principal component by λ^(−b/2), where λ is its variance, raises detail: b = 0 only rotates the axes, b = 1 makes
all variances 1. Karras et al. 2024 (arXiv:2312.02696) standardize channels before training; principal components extend
that to correlated channels.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from faceclip.errors import ConfigError


def principal_scaling(means: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Returns a matrix T (C, C) and the mean μ (C,), float64, of posterior means z (N, C, s, s).

    T (z − μ) has uncorrelated channels of variances λ^(1 − exponent). Raises ConfigError if a combination of channels
    is constant, because it could not be scaled back.
    """
    values = means.double().transpose(0, 1).flatten(1)
    centre = values.mean(dim=1)
    variances, axes = torch.linalg.eigh(torch.cov(values))
    if variances[0] <= variances[-1] * 1e-12:
        raise ConfigError("balance: a combination of latent channels is constant; train with fewer latent_channels")
    return (variances ** (-exponent / 2))[:, None] * axes.T, centre


@torch.no_grad()
def balance_latents(model: AutoencoderKL, means: Tensor, variance: Tensor, exponent: float) -> None:
    """Changes `quant_conv` and `post_quant_conv` in place, so that latents are balanced and reconstructions unchanged.

    means (N, C, s, s): posterior means of training portraits. variance (C,): their mean posterior variances. The
    posterior of a balanced autoencoder is diagonal again, with the same mean variances for each portrait.
    """
    transform, centre = principal_scaling(means, exponent)
    inverse = torch.linalg.inv(transform)
    channels, first, last = len(centre), model.quant_conv, model.post_quant_conv
    weight, bias = (value.detach().double().cpu() for value in (first.weight[:, :, 0, 0], first.bias))
    spread = (transform.square() @ variance.double()).log()
    rows = torch.cat([transform @ weight[:channels], torch.zeros_like(weight[channels:])])
    first.weight.copy_(rows[:, :, None, None])
    first.bias.copy_(torch.cat([transform @ (bias[:channels] - centre), spread]))
    weight, bias = (value.detach().double().cpu() for value in (last.weight[:, :, 0, 0], last.bias))
    last.weight.copy_((weight @ inverse)[:, :, None, None])
    last.bias.copy_(bias + weight @ centre)
