"""The scale of latents: an autoencoder's own values and the values of unit variance that the UNet sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


@contextmanager
def in_range(vae: AutoencoderKL) -> Iterator[None]:
    """The autoencoder in 32 bits where its 16 bits overflow (SDXL's), and as it was afterwards."""
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.to(dtype=torch.float32)
    try:
        yield
    finally:
        if upcast:
            vae.to(dtype=torch.float16)


def encode_pixels(vae: AutoencoderKL, pixels: Tensor, generator: Generators = None) -> Tensor:
    """Latents of unit variance (N,C,h,w) of pixels (N,3,H,W) in [-1,1], drawn from the posterior.

    generator: one for all, or a list of one per picture.
    """
    with in_range(vae):
        pixels = pixels.to(vae.dtype)
        if isinstance(generator, list):
            drawn = [vae.encode(pixels[row : row + 1]).latent_dist.sample(one) for row, one in enumerate(generator)]
            values = torch.cat(drawn)
        else:
            values = vae.encode(pixels).latent_dist.sample(generator)
    return to_unit_scale(vae, values)


def to_unit_scale(vae: AutoencoderKL, values: Tensor) -> Tensor:
    """What the autoencoder encodes (B,C,h,w) -> the latents of diffusion.

    As in diffusers, `latents_mean` and `latents_std` of the configuration take the place of `shift_factor` where both
    are given.
    """
    statistics = _statistics(vae, values)
    if statistics is not None:
        mean, std = statistics
        return (values - mean) * vae.config.scaling_factor / std
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return (values - shift) * vae.config.scaling_factor if shift else values * vae.config.scaling_factor


def from_unit_scale(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The latents of diffusion (B,C,h,w) -> what the autoencoder decodes."""
    statistics = _statistics(vae, latents)
    if statistics is not None:
        mean, std = statistics
        return latents * std / vae.config.scaling_factor + mean
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return latents / vae.config.scaling_factor + shift


def _statistics(vae: AutoencoderKL, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation per channel, (1,C,1,1), where the configuration has both."""
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return None
    values = (torch.tensor(x, dtype=like.dtype).view(1, -1, 1, 1) for x in (mean, std))
    first, second = (x.to(like.device, non_blocking=True) for x in values)  # a GPU is not waited for
    return first, second
