"""diffusers' switches for memory and speed, as far as they must know of the identity channel and of LoRA."""

from __future__ import annotations

from faceclip.errors import ConfigError


class PipelineSwitchesMixin:
    """For a diffusers pipeline with `unet` and `identity_channel`; goes before diffusers' own mixins."""

    def set_attention_slice(self, slice_size: str | int | None) -> None:
        """`enable_attention_slicing` and `disable_attention_slicing` of diffusers come here.

        They put plain processors everywhere; the channel takes its layers back, which are not sliced then (few
        tokens: they need little memory).
        """
        super().set_attention_slice(slice_size)
        if self.identity_channel is not None:
            self.identity_channel.attach(self.unet)

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """As in diffusers for the autoencoder. Raises ConfigError for the UNet."""
        if unet:
            raise ConfigError(
                "fuse_qkv_projections: fused projections of the UNet leave out LoRA and identity channel; call it with"
                " unet=False"
            )
        super().fuse_qkv_projections(unet=False, vae=vae)
