"""What the steps of a call use of the pipeline."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, ControlNetModel, MultiControlNetModel, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor

from faceclip.faces import FaceDetector
from makeup_plugin.calls.defaults import CallDefaults
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.known_faces import KnownFaces


class PipelineParts(Protocol):
    """`FaceMakeUpPipeline` as its steps see it: components, detector, and the state that callbacks may read."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: Any
    joint_encoder: Any
    text_side: Any
    image_encoder: Any
    face_encoder: Any
    identity_channel: IdentityChannel | None
    shading_channel: ControlNetModel | None
    face_fitter: Any
    controlnet: ControlNetModel | MultiControlNetModel | None
    fitter: Any
    config: Any
    image_processor: VaeImageProcessor
    vae_scale_factor: int
    detector: FaceDetector | None
    known_faces: KnownFaces
    interrupt: bool
    call_defaults: CallDefaults
    _detector: FaceDetector | None
    _execution_device: torch.device
    _callback_tensor_inputs: list[str]
    _guidance_scale: float
    _guidance_rescale: float
    _denoising_start: float | None
    _denoising_end: float | None
    _cross_attention_kwargs: dict[str, Any] | None
    _num_timesteps: int
    _interrupt: bool

    def progress_bar(self, iterable: Any) -> Any: ...

    def evict_models(self) -> None: ...

    def maybe_free_model_hooks(self) -> None: ...
