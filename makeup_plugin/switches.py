"""diffusers' switches for memory and speed that must take the identity channel and LoRA into account."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from faceclip.errors import ConfigError
from makeup_plugin.known_faces import KnownFaces
from makeup_plugin.turns import change_in_turn, move_in_turn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Mixed  # the class whose methods these override
else:
    Mixed = object

_PLACED_BY_WEIGHTS = ("joint_encoder", "image_encoder", "face_fitter", "face_encoder")


class PipelineSwitchesMixin(Mixed):
    """For a diffusers pipeline with `unet` and `identity_channel`. It must stand before diffusers' own mixins."""

    _exclude_from_cpu_offload: ClassVar[list[str]]
    known_faces: KnownFaces

    @move_in_turn
    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers. It waits for calls of other threads.

        With a dtype it forgets the remembered faces, since PyTorch does not count that it rounds weights.
        """
        moved = super().to(*args, **kwargs)
        if any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values())):
            self.known_faces.forget()
        return moved

    @move_in_turn
    def enable_model_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers. It waits for calls of other threads."""
        super().enable_model_cpu_offload(*args, **kwargs)

    @change_in_turn
    def set_attention_slice(self, slice_size: str | int | None) -> None:
        """diffusers' `enable_attention_slicing` and `disable_attention_slicing` call this method.

        They put plain processors everywhere. The identity channel then takes its layers back, which are not sliced:
        they have few tokens and need little memory.
        """
        super().set_attention_slice(slice_size)
        if self.identity_channel is not None:
            self.identity_channel.attach(self.unet)

    @change_in_turn
    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """As in diffusers, except that the encoders and the fitter move to the device as a whole and stay there.

        They place their inputs where their weights are, and accelerate's hooks keep weights nowhere between calls.
        """
        excluded = [*type(self)._exclude_from_cpu_offload, *_PLACED_BY_WEIGHTS]
        self._exclude_from_cpu_offload = excluded  # type: ignore[misc]  # hides that of the class
        try:
            super().enable_sequential_cpu_offload(gpu_id=gpu_id, device=device)
        finally:
            del self._exclude_from_cpu_offload  # `enable_model_cpu_offload` uses the class's list

    @change_in_turn
    def enable_group_offload(
        self, onload_device: torch.device, *args: Any, exclude_modules: str | Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        """As in diffusers, except that identity channel, encoders and fitter move to the device as a whole.

        The channel's layers run inside the UNet's attention processors, which diffusers' hooks do not see.
        """
        excluded = [exclude_modules] if isinstance(exclude_modules, str) else [*(exclude_modules or ())]
        excluded += [name for name in ("identity_channel", *_PLACED_BY_WEIGHTS) if name not in excluded]
        super().enable_group_offload(onload_device, *args, exclude_modules=excluded, **kwargs)

    def evict_models(self) -> None:
        """After `enable_model_cpu_offload`, move every component that is on the device back to the CPU.

        accelerate moves a component away when the next one in `model_cpu_offload_seq` runs. The joint encoder runs
        twice, so without this the encoders and the shading channel would stay until the end of the call.
        """
        for hook in getattr(self, "_all_hooks", ()):
            hook.offload()

    @change_in_turn
    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """As in diffusers for the autoencoder (`unet=False`). Raises ConfigError for the UNet."""
        if unet:
            raise ConfigError(
                "fuse_qkv_projections: fused projections of the UNet would leave out LoRA and identity channel: call it"
                " with unet=False"
            )
        super().fuse_qkv_projections(unet=False, vae=vae)
