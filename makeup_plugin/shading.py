"""The shading channel gives the UNet position, pose and light of the face as residuals of a ControlNet.

Its input is one shading map per sample in image coordinates (geometry of the person, grey albedo, spherical-harmonics
light, black elsewhere). As in Face-MakeUp V2, the ControlNet's cross-attention context consists of the identity tokens
alone, for the unconditional half too. The words belong to the UNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from faceclip.errors import ConfigError
from faceclip.storage.loading import building
from makeup_plugin.regional_attention import RegionalContext

# diffusers' widths for an eightfold VAE; one stride-2 step fewer for each halving of the factor.
_EMBEDDING_WIDTHS = (16, 32, 96, 256)


@dataclass(frozen=True, kw_only=True)
class ShadingResiduals:
    """The tensors that a ControlNet adds to the UNet: one per skip connection, and one for the middle block."""

    down: list[Tensor]
    mid: Tensor

    def plus(self, other: ShadingResiduals) -> ShadingResiduals:
        """The sum of both."""
        down = [ours + theirs for ours, theirs in zip(self.down, other.down, strict=True)]
        return ShadingResiduals(down=down, mid=self.mid + other.mid)


def shading_channel_from_unet(
    unet: UNet2DConditionModel, *, vae_scale_factor: int = 8, share: bool = False
) -> ControlNetModel:
    """A ControlNet for `unet` that starts as a copy of its encoder and adds nothing (zero output
    convolutions).

    `vae_scale_factor` is the ratio of image size to latent size (2, 4 or 8), since the map has image resolution. With
    `share` the copy is none: it is made of the UNet's own parameters, which saves their memory while they are frozen.
    Raises ConfigError for another factor, and for a UNet that already has a LoRA.
    """
    steps = vae_scale_factor.bit_length() - 1
    if vae_scale_factor != 2**steps or not 1 <= steps < len(_EMBEDDING_WIDTHS):
        raise ConfigError(f"vae_scale_factor must be 2, 4 or 8, got {vae_scale_factor}")
    if getattr(unet, "peft_config", None):
        raise ConfigError("the UNet already has an adapter: make the shading channel before adding LoRA")
    widths = _EMBEDDING_WIDTHS[: steps + 1]
    if share:
        channel = _sharing_weights(unet, widths)
    else:
        channel = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    _let_the_map_in(channel)
    return channel


def _sharing_weights(unet: UNet2DConditionModel, widths: tuple[int, ...]) -> ControlNetModel:
    """A ControlNet whose copy of the UNet's encoder consists of the UNet's own parameters; what it adds to them is new,
    in float32, and zero where it ends."""
    with building, torch.device("meta"):
        channel = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=widths, load_weights_from_unet=False
        )
    for name, part in channel.named_children():
        source = getattr(unet, name, None)
        if source is None:
            for module in part.modules():
                for key, value in list(module.named_parameters(recurse=False)):
                    empty = torch.empty(value.shape, dtype=torch.float32, device=unet.device)
                    module.register_parameter(key, nn.Parameter(empty))
            continue
        theirs = dict(source.named_modules())
        for path, module in part.named_modules():
            for key, _ in list(module.named_parameters(recurse=False)):
                module.register_parameter(key, getattr(theirs[path], key))
    for convolution in (*channel.controlnet_down_blocks, channel.controlnet_mid_block):
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return channel


def _let_the_map_in(channel: ControlNetModel) -> None:
    """Initializes the map's embedding so that its signal arrives (He et al. 2015).

    diffusers starts the last convolution at zero, which would hide the map in the first steps, and torch's default for
    the other convolutions removes most of the signal. The zero output convolutions alone keep the UNet's output
    unchanged.
    """
    embedding = channel.controlnet_cond_embedding
    for convolution in (embedding.conv_in, *embedding.blocks, embedding.conv_out):
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)


def shading_residuals(
    channel: ControlNetModel,
    latents: Tensor,
    timesteps: Tensor,
    *,
    identity_tokens: Tensor | RegionalContext,
    shading: Tensor,
    added: Mapping[str, Tensor] | None,
    scale: float = 1.0,
    keep: Tensor | None = None,
    rows: Tensor | None = None,
) -> ShadingResiduals:
    """Residuals for noisy latents (B,4,h,w), identity tokens (B,n,D) and shading maps (B,3,H,W) in [0,1].

    identity_tokens may be those of several people. added: `added_cond_kwargs`, as for the UNet.

    `rows`: indices of the samples that have a map, where not all have one. The network runs on these alone (of several
    people, on all), and the residuals of the others are zero. `keep` (B,) multiplies each sample's residuals. 0 drops
    the condition and gives exactly what no channel would give.
    """
    factor = 2 ** (len(channel.config.conditioning_embedding_out_channels) - 1)
    expected = (latents.shape[0], 3, latents.shape[2] * factor, latents.shape[3] * factor)
    if tuple(shading.shape) != expected:
        raise ConfigError(f"shading must be {expected} for latents {tuple(latents.shape)}, got {tuple(shading.shape)}")
    if rows is not None and isinstance(identity_tokens, Tensor):
        return _spread(
            shading_residuals(
                channel,
                latents[rows],
                timesteps[rows] if timesteps.ndim and len(timesteps) > 1 else timesteps,
                identity_tokens=identity_tokens[rows],
                shading=shading[rows],
                added=None if added is None else {name: value[rows] for name, value in added.items()},
                scale=scale,
                keep=None if keep is None else keep[rows],
            ),
            rows,
            len(latents),
        )
    down, mid = channel(
        latents,
        timesteps,
        encoder_hidden_states=identity_tokens,
        controlnet_cond=shading,
        conditioning_scale=scale,
        added_cond_kwargs=added,
        return_dict=False,
    )
    if keep is not None:
        factors = keep.to(mid.dtype)[:, None, None, None]
        # where, not a product: a dropped sample must not pass on an infinity as NaN.
        down = [torch.where(factors == 0, torch.zeros_like(x), x * factors) for x in down]
        mid = torch.where(factors == 0, torch.zeros_like(mid), mid * factors)
    return ShadingResiduals(down=list(down), mid=mid)


def rows_with_map(keep: Tensor | None) -> Tensor | None:
    """Indices of the samples whose `keep` (B,) is not zero; None where that is all of them."""
    if keep is None or bool((keep != 0).all()):
        return None
    return keep.nonzero()[:, 0]


def _spread(some: ShadingResiduals, rows: Tensor, count: int) -> ShadingResiduals:
    """Residuals of `rows` as those of `count` samples."""

    def spread(x: Tensor) -> Tensor:
        return x.new_zeros(count, *x.shape[1:]).index_copy(0, rows, x)

    return ShadingResiduals(down=[spread(x) for x in some.down], mid=spread(some.mid))
