"""What a call asks for: `Request` holds the arguments as given, and `check_request` makes a `Call` of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from numpy.typing import ArrayLike
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.arguments import (
    channel_scale,
    check_call,
    check_callback,
    check_negative,
    check_part,
    check_precision,
    check_schedule,
    image_size,
    number,
    shortcut_weight,
    texts_of,
)
from makeup_plugin.calls.defaults import CallDefaults
from makeup_plugin.calls.embeddings import TextEmbeddings, size_ids, text_embeddings
from makeup_plugin.calls.parts import PipelineParts
from makeup_plugin.fit_edits import Expression, FitEdits, Pose, read_fit_edits
from makeup_plugin.identities import Identity
from makeup_plugin.placement import Placement, check_placement
from makeup_plugin.plain_text import check_clip_skip
from makeup_plugin.references import Images
from makeup_plugin.regions import Region
from makeup_plugin.scales import IdentityScale, check_identity_scale


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of a call as given. `FaceMakeUpPipeline.__call__` explains them and has their defaults."""

    prompt: str | Sequence[str] | None
    image: Images
    identity: Identity | Sequence[Identity | None] | None
    regions: Sequence[Region] | None
    region_prompts: Sequence[str] | None
    negative_prompt: str | Sequence[str] | None
    identity_scale: float | Sequence[float] | Mapping[str, Any] | None
    identity_start: float
    identity_end: float
    identity_schedule: Callable[[float], float] | Sequence[float] | None
    shading_scale: float | None
    shortcut_scale: float | None
    shading_image: Images
    shading_map: Images
    landmarks: Sequence[ArrayLike | None] | ArrayLike | None
    shading_landmarks: Sequence[ArrayLike | None] | ArrayLike | None
    pose: Pose | None
    expression: Expression | None
    light: ArrayLike | None
    reference_placement: Placement
    control_image: Any
    controlnet_conditioning_scale: float | Sequence[float]
    control_guidance_start: float | Sequence[float]
    control_guidance_end: float | Sequence[float]
    face_policy: str
    height: int | None
    width: int | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None
    negative_pooled_prompt_embeds: Tensor | None
    clip_skip: int | None
    num_inference_steps: int | None
    timesteps: Sequence[int] | None
    sigmas: Sequence[float] | None
    denoising_start: float | None
    denoising_end: float | None
    eta: float
    guidance_rescale: float
    original_size: Sequence[int] | None
    crops_coords_top_left: Sequence[int]
    target_size: Sequence[int] | None
    negative_original_size: Sequence[int] | None
    negative_crops_coords_top_left: Sequence[int]
    negative_target_size: Sequence[int] | None
    cross_attention_kwargs: dict[str, Any] | None
    guidance_scale: float | None
    guide_shading: bool | None
    num_images_per_prompt: int
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None
    callback_on_step_end_tensor_inputs: Sequence[str]
    output_type: str
    return_dict: bool
    allow_urls: bool
    watermark: bool | None
    record_prompt: bool


@dataclass(frozen=True, kw_only=True)
class Call:
    """A checked request.

    given: the request. prompts: one per image, before num_images_per_prompt, as soon as the references are known.
    negative_prompts: as many as divide the images. texts, negative_texts: embeddings that the caller gives in their
    place. height, width: px. sizes, negative_sizes: size conditioning (6,). steps, per_prompt: at least 1. guided:
    whether the call begins with classifier-free guidance.
    shading_scale: 0 where the channel is absent. shortcut_scale: 1 unless given. placement, edits: where
    fitted maps go, and what changes in the fits.
    callback_inputs: tensors that the callback sees.
    """

    given: Request
    prompts: list[str]
    negative_prompts: list[str]
    texts: TextEmbeddings | None
    negative_texts: TextEmbeddings | None
    sizes: Tensor
    negative_sizes: Tensor
    height: int
    width: int
    steps: int
    per_prompt: int
    guidance_scale: float
    guided: bool
    guide_shading: bool
    identity_scale: IdentityScale
    shading_scale: float
    placement: Placement
    edits: FitEdits | None
    shortcut_scale: float
    callback_inputs: Sequence[str]

    @property
    def reads_identity(self) -> bool:
        """Whether a step may read the identity channel's inputs: at scale 0 without a shading channel none does. A
        callback may raise the scale."""
        return any(self.identity_scale.layers) or self.shading_scale != 0 or self.given.callback_on_step_end is not None

    @property
    def count(self) -> int:
        """Number of images to generate."""
        return len(self.prompts) * self.per_prompt

    def for_people(self, people: int) -> Call:
        """The call with one prompt per reference. Raises ConfigError when the negative prompts do not fit then."""
        prompts = self.prompts * people if len(self.prompts) == 1 else self.prompts
        check_negative(len(self.negative_prompts), len(prompts), self.per_prompt)
        _check_rows("prompt_embeds", self.texts, len(prompts))
        _check_rows("negative_prompt_embeds", self.negative_texts, len(prompts))
        return replace(self, prompts=prompts)

    def each(self, values: Sequence[Any]) -> list[Any]:
        """The values of the prompts, once for every image."""
        return [value for value in values for _ in range(self.per_prompt)]


def check_request(pipeline: PipelineParts, given: Request) -> Call:
    """The request with its defaults filled in. Raises ConfigError, which names the argument, for impossible values."""
    callback, callback_inputs = given.callback_on_step_end, given.callback_on_step_end_tensor_inputs
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        callback_inputs = callback.tensor_inputs
    texts = text_embeddings(pipeline.unet, given.prompt_embeds, given.pooled_prompt_embeds)
    if texts is not None and given.prompt is not None:
        raise ConfigError("prompt and prompt_embeds exclude each other: give one")
    prompts = texts_of("prompt", given.prompt) if texts is None else [""] * len(texts)
    negative_texts = text_embeddings(
        pipeline.unet, given.negative_prompt_embeds, given.negative_pooled_prompt_embeds, prefix="negative_"
    )
    if negative_texts is not None and given.negative_prompt is not None:
        raise ConfigError("negative_prompt and negative_prompt_embeds exclude each other: give one")
    if given.clip_skip is not None:
        check_clip_skip(pipeline.text_side, given.clip_skip)
    negative_prompts = texts_of("negative_prompt", "" if given.negative_prompt is None else given.negative_prompt)
    height, width = image_size(pipeline.unet, pipeline.vae_scale_factor, given.height, given.width)
    sizes = size_ids(given.original_size, given.crops_coords_top_left, given.target_size, height=height, width=width)
    negative_sizes = sizes
    if given.negative_original_size is not None and given.negative_target_size is not None:  # as in diffusers
        negative_sizes = size_ids(
            given.negative_original_size,
            given.negative_crops_coords_top_left,
            given.negative_target_size,
            height=height,
            width=width,
            prefix="negative_",
        )
    elif (given.negative_original_size, given.negative_target_size) != (None, None):
        raise ConfigError("negative_original_size and negative_target_size go together: give both or neither")
    check_schedule(given.eta, given.guidance_rescale, given.cross_attention_kwargs)
    check_part(given.denoising_start, given.denoising_end, latents=given.latents)
    chosen = pipeline.call_defaults.filled(**{field.name: getattr(given, field.name) for field in fields(CallDefaults)})
    steps, per_prompt = check_call(chosen.num_inference_steps, given.num_images_per_prompt, given.output_type)
    check_callback(callback, callback_inputs, pipeline._callback_tensor_inputs)
    identity_scale = check_identity_scale(
        pipeline.identity_channel,
        given.identity_scale,
        chosen.identity_scale,
        start=given.identity_start,
        end=given.identity_end,
        schedule=given.identity_schedule,
    )
    shading_scale = channel_scale("shading", pipeline.shading_channel, given.shading_scale, chosen.shading_scale)
    shortcut_scale = shortcut_weight(pipeline.identity_channel, given.shortcut_scale)
    guidance_scale = number("guidance_scale", chosen.guidance_scale)
    channels = {name: getattr(pipeline, name) for name in ("identity_channel", "shading_channel")}
    check_precision(pipeline.unet, **channels)
    return Call(
        given=given,
        prompts=prompts,
        negative_prompts=negative_prompts,
        texts=texts,
        negative_texts=negative_texts,
        sizes=sizes,
        negative_sizes=negative_sizes,
        height=height,
        width=width,
        steps=steps,
        per_prompt=per_prompt,
        guidance_scale=guidance_scale,
        guided=guidance_scale > 1 and pipeline.unet.config.get("time_cond_proj_dim") is None,
        guide_shading=chosen.guide_shading,
        identity_scale=identity_scale,
        shading_scale=shading_scale,
        placement=check_placement(given.reference_placement, height, width),
        edits=read_fit_edits(given.pose, given.expression, given.light),
        shortcut_scale=shortcut_scale,
        callback_inputs=callback_inputs,
    )


def _check_rows(name: str, texts: TextEmbeddings | None, count: int) -> None:
    if texts is not None and len(texts) not in (1, count):
        raise ConfigError(f"{name}: {len(texts)} rows do not fit {count} texts or people: give 1 or {count}")
