"""diffusers' switches for memory and speed, as far as they must know of the identity channel and of LoRA."""

from __future__ import annotations

import torch

from faceclip.errors import ConfigError

_PLACED_BY_WEIGHTS = ("joint_encoder", "image_encoder", "face_fitter")


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

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As in diffusers; the encoders and the fitter go to the device as a whole and stay there.

        They place their inputs by where their weights are, and accelerate's hooks keep those nowhere between calls.
        """
        self._exclude_from_cpu_offload = [*type(self)._exclude_from_cpu_offload, *_PLACED_BY_WEIGHTS]
        try:
            super().enable_sequential_cpu_offload(gpu_id=gpu_id, device=device)
        finally:
            del self._exclude_from_cpu_offload  # for `enable_model_cpu_offload` the class's list holds

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """As in diffusers for the autoencoder. Raises ConfigError for the UNet."""
        if unet:
            raise ConfigError(
                "fuse_qkv_projections: fused projections of the UNet leave out LoRA and identity channel; call it with"
                " unet=False"
            )
        super().fuse_qkv_projections(unet=False, vae=vae)
