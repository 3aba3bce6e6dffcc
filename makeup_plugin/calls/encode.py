"""The conditions of a call, and the latents that it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.joint import JointConditioning, JointEncoder
from makeup_plugin.arguments import check_generator, dense_floats
from makeup_plugin.calls.embeddings import with_size_ids
from makeup_plugin.calls.identify import encode_faces
from makeup_plugin.calls.parts import PipelineParts
from makeup_plugin.calls.request import Call
from makeup_plugin.conditioning import Conditions, TextSide, concatenate, unconditional_half
from makeup_plugin.encoding import EncodedFaces, encode_conditions
from makeup_plugin.image_tokens import nobody_tokens
from makeup_plugin.known_faces import KnownFaces
from makeup_plugin.plain_text import PlainText
from makeup_plugin.references import References


def encode_references(
    pipeline: PipelineParts,
    call: Call,
    references: References,
    maps: Tensor | None,
    device: torch.device,
    *,
    nobody: Tensor | None = None,
) -> Conditions:
    """One row per prompt, on the device and in the UNet's precision. nobody: what `tokens_of_nobody` gives."""
    encoded = encode_faces(pipeline, references, device, for_channel=call.reads_identity)
    return with_given(call, conditions_of(pipeline, call, call.prompts, encoded, maps, device, nobody=nobody))


def conditions_of(
    pipeline: PipelineParts,
    call: Call,
    prompts: Sequence[str],
    encoded: EncodedFaces | None,
    maps: Tensor | None,
    device: torch.device,
    *,
    nobody: Tensor | None = None,
) -> Conditions:
    """One row per text, on the device and in the UNet's precision."""
    channel = pipeline.identity_channel if call.reads_identity else None
    reads_image = channel is not None and channel.reads_image
    conditions = encode_conditions(
        _text_side(pipeline, call),
        prompts,
        None,
        height=call.height,
        width=call.width,
        image_encoder=pipeline.image_encoder if reads_image else None,
        encoded=encoded,
        identity_dim=None if channel is None else channel.config.identity_dim,
        shading=None if maps is None else maps.to(device),
        with_identity=channel is not None,
        normalized=channel is None or channel.config.normalized,
        nobody=nobody,
    )
    return conditions.to(device, pipeline.unet.dtype)


def with_given(call: Call, conditions: Conditions) -> Conditions:
    """The conditions with the texts and sizes that the caller gives as numbers."""
    if call.texts is not None:
        times = len(conditions) // len(call.texts)
        conditions = call.texts.repeat(times).put_into(conditions)
    return with_size_ids(conditions, call.sizes)


def tokens_of_nobody(pipeline: PipelineParts) -> Tensor | None:
    """Image tokens (T,W) that the identity channel was trained to read without a face; None stands for zeros."""
    channel = pipeline.identity_channel
    if channel is None or not channel.reads_image or channel.config.nobody != "zero_image":
        return None
    tower = pipeline.image_encoder
    return pipeline.known_faces.recall("nobody", "tokens", lambda: nobody_tokens(tower), by=tower)


@dataclass(frozen=True)
class _WithoutFaces:
    """A joint encoder's conditioning of texts without a face. The pipeline remembers texts that it has encoded."""

    encoder: JointEncoder
    known: KnownFaces

    def encode(self, prompts: Sequence[str], *_: Any, **__: Any) -> JointConditioning:
        return self.known.recall("texts", tuple(prompts), lambda: self.encoder.encode(prompts), by=self.encoder)


def _text_side(pipeline: PipelineParts, call: Call) -> TextSide:
    side = pipeline.text_side
    return replace(side, clip_skip=call.given.clip_skip) if isinstance(side, PlainText) else side


def complete_conditions(
    pipeline: PipelineParts, call: Call, conditions: Conditions, *, nobody: Tensor | None = None
) -> Conditions:
    """One row per image, and with guidance as many rows of the unconditional half before them."""
    conditions = _with_scales(call, conditions.repeat(call.per_prompt))
    if not call.guided:
        return conditions
    text_side = _text_side(pipeline, call)
    absent = call.given.negative_prompt is None and pipeline.config.force_zeros_for_empty_prompt
    if absent and isinstance(text_side, PlainText):
        text_side = text_side.silenced()
    negative = unconditional_half(
        _WithoutFaces(text_side, pipeline.known_faces) if isinstance(text_side, JointEncoder) else text_side,
        call.negative_prompts,
        conditions,
        height=call.height,
        width=call.width,
        keep_shading=not call.guide_shading,
        nobody=nobody,
    )
    if call.negative_texts is not None:
        negative = call.negative_texts.repeat(len(negative) // len(call.negative_texts)).put_into(negative)
    negative = with_size_ids(negative.with_one_text(), call.negative_sizes)
    if negative.tokens.shape[1] != conditions.tokens.shape[1]:
        raise ConfigError(
            f"negative_prompt_embeds: the negative text has {negative.tokens.shape[1]} tokens and the prompt"
            f" {conditions.tokens.shape[1]}: give equally many"
        )
    return concatenate([negative, conditions])


def _with_scales(call: Call, conditions: Conditions) -> Conditions:
    """The conditions with the identity's scale of each image, where the call gives a list of them."""
    rows = call.identity_scale.rows
    if rows is None or conditions.people_tokens is not None:
        return conditions
    if len(rows) not in (len(call.prompts), call.count):
        raise ConfigError(
            f"identity_scale: {len(rows)} numbers do not fit {call.count} images of {len(call.prompts)} prompts: give"
            " one for all, one per prompt or one per image"
        )
    each = rows if len(rows) == call.count else call.each(rows)
    return replace(conditions, identity_scale=conditions.tokens.new_tensor(each))


def initial_latents(pipeline: PipelineParts, call: Call, device: torch.device) -> Tensor:
    """Noise (N,C,h,w) of unit variance, as given or drawn. Raises ConfigError for latents of another shape."""
    factor, latents, generator = pipeline.vae_scale_factor, call.given.latents, call.given.generator
    shape = (call.count, pipeline.unet.config.in_channels, call.height // factor, call.width // factor)
    check_generator(generator, call.count)
    if latents is None:
        return randn_tensor(shape, generator=generator, device=device, dtype=pipeline.unet.dtype)
    if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
        found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ConfigError(f"latents must be a tensor {shape}, got {found}")
    dense_floats("latents", latents)
    return latents.to(device=device, dtype=pipeline.unet.dtype)
