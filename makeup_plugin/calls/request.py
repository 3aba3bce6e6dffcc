"""What a call asks for: `Request` holds the arguments as given, and `check_request` makes a `Call` of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from numpy.typing import ArrayLike
from torch import Tensor

from makeup_plugin.arguments import (
    channel_scale,
    check_call,
    check_callback,
    check_negative,
    check_precision,
    image_size,
    number,
    texts_of,
)
from makeup_plugin.calls.parts import PipelineParts
from makeup_plugin.references import Images


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of a call as given. `FaceMakeUpPipeline.__call__` explains them and has their defaults."""

    prompt: str | Sequence[str]
    image: Images
    negative_prompt: str | Sequence[str] | None
    identity_scale: float | None
    shading_scale: float | None
    shading_image: Images
    shading_map: Images
    landmarks: Sequence[ArrayLike | None] | ArrayLike | None
    shading_landmarks: Sequence[ArrayLike | None] | ArrayLike | None
    face_policy: str
    height: int | None
    width: int | None
    num_inference_steps: int
    guidance_scale: float
    guide_shading: bool
    num_images_per_prompt: int
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    output_type: str
    return_dict: bool
    watermark: bool | None
    record_prompt: bool


@dataclass(frozen=True, kw_only=True)
class Call:
    """A checked request.

    given: the request. prompts: one per image, before num_images_per_prompt, as soon as the references are known.
    negative_prompts: as many as divide the images. height, width: px. steps, per_prompt: at least 1.
    identity_scale, shading_scale: 0 where the channel is absent. callback_inputs: tensors that the callback sees.
    """

    given: Request
    prompts: list[str]
    negative_prompts: list[str]
    height: int
    width: int
    steps: int
    per_prompt: int
    guidance_scale: float
    identity_scale: float
    shading_scale: float
    callback_inputs: Sequence[str]

    @property
    def count(self) -> int:
        """Number of images to generate."""
        return len(self.prompts) * self.per_prompt

    @property
    def guided(self) -> bool:
        """Whether the call begins with classifier-free guidance."""
        return self.guidance_scale > 1

    def for_people(self, people: int) -> Call:
        """The call with one prompt per reference. Raises ConfigError when the negative prompts do not fit then."""
        prompts = self.prompts * people if len(self.prompts) == 1 else self.prompts
        check_negative(len(self.negative_prompts), len(prompts), self.per_prompt)
        return replace(self, prompts=prompts)

    def each(self, values: Sequence[Any]) -> list[Any]:
        """The values of the prompts, once for every image."""
        return [value for value in values for _ in range(self.per_prompt)]


def check_request(pipeline: PipelineParts, given: Request) -> Call:
    """The request with its defaults filled in. Raises ConfigError, which names the argument, for impossible values."""
    callback, callback_inputs = given.callback_on_step_end, given.callback_on_step_end_tensor_inputs
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        callback_inputs = callback.tensor_inputs
    prompts = texts_of("prompt", given.prompt)
    negative_prompts = texts_of("negative_prompt", "" if given.negative_prompt is None else given.negative_prompt)
    height, width = image_size(pipeline.unet, pipeline.vae_scale_factor, given.height, given.width)
    steps, per_prompt = check_call(given.num_inference_steps, given.num_images_per_prompt, given.output_type)
    check_callback(callback, callback_inputs, pipeline._callback_tensor_inputs)
    identity_scale = channel_scale("identity", pipeline.identity_channel, given.identity_scale)
    shading_scale = channel_scale("shading", pipeline.shading_channel, given.shading_scale)
    guidance_scale = number("guidance_scale", given.guidance_scale)
    channels = {name: getattr(pipeline, name) for name in ("identity_channel", "shading_channel")}
    check_precision(pipeline.unet, **channels)
    return Call(
        given=given,
        prompts=prompts,
        negative_prompts=negative_prompts,
        height=height,
        width=width,
        steps=steps,
        per_prompt=per_prompt,
        guidance_scale=guidance_scale,
        identity_scale=identity_scale,
        shading_scale=shading_scale,
        callback_inputs=callback_inputs,
    )
