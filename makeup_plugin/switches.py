"""diffusers' switches for memory and speed, as far as they must know of the identity channel and of LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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

    def enable_group_offload(
        self, onload_device: torch.device, *args: Any, exclude_modules: str | Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        """As in diffusers; identity channel, encoders and fitter go to the device as a whole and stay there.

        The channel's layers run inside the UNet's processors, which diffusers' hooks do not see.
        """
        excluded = [exclude_modules] if isinstance(exclude_modules, str) else [*(exclude_modules or ())]
        excluded += [name for name in ("identity_channel", *_PLACED_BY_WEIGHTS) if name not in excluded]
        super().enable_group_offload(onload_device, *args, exclude_modules=excluded, **kwargs)

    def evict_models(self) -> None:
        """After `enable_model_cpu_offload`: whatever is on the device goes back to the CPU.

        accelerate moves a component away when the one after it in `model_cpu_offload_seq` runs. The joint encoder runs
        twice, and encoders and the shading channel would stay until the end of the call.
        """
        for hook in getattr(self, "_all_hooks", ()):
            hook.offload()

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """As in diffusers for the autoencoder. Raises ConfigError for the UNet."""
        if unet:
            raise ConfigError(
                "fuse_qkv_projections: fused projections of the UNet leave out LoRA and identity channel; call it with"
                " unet=False"
            )
        super().fuse_qkv_projections(unet=False, vae=vae)
