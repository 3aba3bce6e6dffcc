"""Checks of the pipeline's arguments. Each error names the argument and says what to give instead."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from faceclip.errors import ConfigError

CONTROL_MAPS = ("shading", "five_points")
OUTPUT_TYPES = ("pil", "np", "pt", "latent")

MAX_SIDE = 2**14  # px of a picture


def check_parts(pipeline: Any) -> None:
    """Raises ConfigError, which names the part, for a pipeline whose parts lack what they read."""
    channel, shading = pipeline.identity_channel, pipeline.shading_channel
    if pipeline.config.control_map not in CONTROL_MAPS:
        raise ConfigError(f"control_map must be one of {', '.join(CONTROL_MAPS)}, got {pipeline.config.control_map!r}")
    for tower, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
        if (getattr(pipeline, tower) is None) != (getattr(pipeline, tokenizer) is None):
            raise ConfigError(f"{tower} and {tokenizer} go together: give both or neither")
    if pipeline.joint_encoder is None and pipeline.text_encoder is None and pipeline.text_encoder_2 is None:
        raise ConfigError("joint_encoder is missing: give joint_encoder=, or the base's text_encoder= and tokenizer=")
    if channel is None and shading is not None:
        raise ConfigError("shading_channel reads the tokens of the identity channel: give identity_channel too")
    if channel is not None:
        check_channel_inputs(pipeline, channel)


def check_channel_inputs(pipeline: Any, channel: Any) -> None:
    """Raises ConfigError for a pipeline that has not what the identity channel reads."""
    if channel.reads_image and pipeline.image_encoder is None:
        raise ConfigError("identity_channel needs image_encoder: give the image tower it was trained with")
    if pipeline.joint_encoder is None and pipeline.face_encoder is None:
        raise ConfigError("identity_channel needs face_encoder: give the recognizer it was trained with")


def image_size(unet: UNet2DConditionModel, factor: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width in px. The default is the UNet's sample size; both are multiples of `factor`, the VAE's.

    Raises ConfigError for other numbers.
    """
    sample = unet.config.sample_size
    default = (sample, sample) if isinstance(sample, int) else tuple(sample)
    height = default[0] * factor if height is None else whole_number("height", height)
    width = default[1] * factor if width is None else whole_number("width", width)
    if max(height, width) > MAX_SIDE:
        raise ConfigError(f"height and width must be at most {MAX_SIDE:,} px, got {height}x{width}")
    if height < factor or width < factor or height % factor or width % factor:
        raise ConfigError(f"height and width must be positive multiples of {factor}, got {height}x{width}")
    return height, width


def check_precision(unet: UNet2DConditionModel, **channels: nn.Module | None) -> None:
    """Raises ConfigError for a channel in another precision than the UNet, whose layers it works in."""
    for name, channel in channels.items():
        dtype = getattr(channel, "dtype", unet.dtype)
        if dtype != unet.dtype and not torch.is_autocast_enabled(unet.device.type):
            raise ConfigError(
                f"{name} is in {str(dtype).removeprefix('torch.')} and the UNet in"
                f" {str(unet.dtype).removeprefix('torch.')}: move them together, by pipeline.to(dtype)"
            )


def check_adapter_name(name: str | None) -> None:
    """Raises ConfigError for a name that no LoRA can have."""
    if name is not None and (not isinstance(name, str) or not name or "." in name):
        raise ConfigError(f"adapter_name must be a text without dots, got {name!r}: give e.g. 'style'")


def channel_scale(name: str, channel: nn.Module | None, value: float | None, default: float | None = None) -> float:
    """Scale of a channel. None means `default`, or 1, where the channel exists, and 0 where it does not.

    Raises ConfigError for a scale that is not a number, and for a scale other than 0 where the channel is absent.
    """
    if value is None:
        return 0.0 if channel is None else 1.0 if default is None else float(default)
    number(f"{name}_scale", value)
    if value != 0 and channel is None:
        raise ConfigError(f"{name}_scale={value}, but the pipeline has no {name}_channel: load one, or give 0")
    return float(value)


def shortcut_weight(channel: Any, value: float | None) -> float:
    """Weight of the identity channel's shortcut; None means 1.

    Raises ConfigError for a weight that is not a number, and for one other than 1 where there is no shortcut.
    """
    weight = 1.0 if value is None else number("shortcut_scale", value)
    if weight != 1 and (channel is None or not channel.has_shortcut):
        raise ConfigError(
            f"shortcut_scale={value}, but the pipeline has no identity_channel with a shortcut: load one, or leave"
            " shortcut_scale out"
        )
    return weight


def texts_of(name: str, value: Any) -> list[str]:
    """One text or several texts as a list.

    Raises ConfigError, which names the argument, for anything else: a set has no order, and half a pair of surrogates
    is no character.
    """
    unordered = isinstance(value, Set | Mapping)
    texts = list(value) if isinstance(value, Iterable) and not isinstance(value, str) and not unordered else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f'{name} must be a text or a list of texts: give the empty text "" for no words')
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{name} holds half a character ({text[error.start]!a}, position {error.start}): read it as UTF-8"
            ) from error
    return texts


def path_of(name: str, value: Any) -> Path:
    """The value as a path. Raises ConfigError, which names the argument, for anything else, and for the empty text,
    which would be the current folder."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(f"{name} must be a path, got {value!r}")
    return Path(value)


def check_flags(**values: Any) -> None:
    """Raises ConfigError, which names the argument, for switches that are neither true nor false: the text "no" would
    count as true."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise ConfigError(f"{name} must be True or False, got {value!r}")


def dense_floats(name: str, value: Tensor) -> None:
    """Raises ConfigError, which names the argument, unless the tensor holds finite floating-point numbers, and has
    them all: not sparse, not quantized, not on the device meta."""
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        raise ConfigError(f"{name} must hold all of its numbers, got a sparse, quantized or meta tensor: make it dense")
    if not value.is_floating_point() or not bool(torch.isfinite(value.float()).all()):
        raise ConfigError(f"{name} must hold finite floating-point numbers: look at what made it")


def whole_number(name: str, value: Any) -> int:
    """The value as an int. Raises ConfigError, which names the argument, when it is not a whole number."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise ConfigError(f"{name} must be a whole number, got {value!r}") from error


def number(name: str, value: Any) -> float:
    """The value as a float. Raises ConfigError, which names the argument, when it is not a finite number.

    NaN would make black pictures, or pictures without guidance.
    """
    try:
        finite = math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if not finite:
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def check_call(steps: int, per_prompt: int, output_type: str) -> tuple[int, int]:
    """Number of steps and of images per prompt, as ints. Raises ConfigError for impossible values."""
    steps, per_prompt = whole_number("num_inference_steps", steps), whole_number("num_images_per_prompt", per_prompt)
    if steps < 1:
        raise ConfigError(f"num_inference_steps must be at least 1, got {steps}")
    if per_prompt < 1:
        raise ConfigError(f"num_images_per_prompt must be at least 1, got {per_prompt}")
    if output_type not in OUTPUT_TYPES:
        raise ConfigError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
    return steps, per_prompt


def check_part(start: Any, end: Any, *, latents: Any) -> None:
    """Raises ConfigError unless `denoising_start` and `denoising_end` name a part of the noise, and where the first is
    given there are latents to go on from."""
    if end is not None and not 0 < number("denoising_end", end) <= 1:
        raise ConfigError(f"denoising_end must be above 0 and at most 1, got {end}")
    if start is None:
        return
    if not 0 < number("denoising_start", start) < (1 if end is None else end):
        limit = "1" if end is None else f"denoising_end={end}"
        raise ConfigError(f"denoising_start must be above 0 and below {limit}, got {start}")
    if latents is None:
        raise ConfigError(
            "denoising_start goes on from latents: give latents=, the images of a call with denoising_end and"
            ' output_type="latent"'
        )


def check_schedule(eta: Any, guidance_rescale: Any, cross_attention_kwargs: Any) -> None:
    """Raises ConfigError, which names the argument, for values that no scheduler and no UNet can have."""
    for name, value in (("eta", eta), ("guidance_rescale", guidance_rescale)):
        if not 0 <= number(name, value) <= 1:
            raise ConfigError(f"{name} must lie between 0 and 1, got {value}")
    if cross_attention_kwargs is not None:
        if not isinstance(cross_attention_kwargs, dict):
            raise ConfigError(f"cross_attention_kwargs must be a dictionary, got {cross_attention_kwargs!r}")
        if "scale" in cross_attention_kwargs:
            number('cross_attention_kwargs["scale"]', cross_attention_kwargs["scale"])


def check_generator(generator: Any, count: int) -> None:
    """Raises ConfigError unless `generator` is None, a torch generator, or a list of `count` generators."""
    several = isinstance(generator, list)
    if several and len(generator) != count:
        raise ConfigError(f"{count} images need {count} generators, got {len(generator)}")
    each = generator if several else [generator]
    if generator is not None and not all(isinstance(one, torch.Generator) for one in each):
        raise ConfigError(
            f"generator must be a torch.Generator or a list of generators, got {generator!r}: to use a seed, give"
            " torch.Generator().manual_seed(seed)"
        )


def check_negative(negative: int, prompts: int, per_prompt: int) -> None:
    """Raises ConfigError when it is not clear which negative prompt belongs to which image."""
    if negative not in (1, prompts, prompts * per_prompt):
        raise ConfigError(
            f"negative_prompt: {negative} texts do not fit {prompts * per_prompt} images of {prompts} prompts: give one"
            " for all, one per prompt or one per image"
        )


def check_callback(callback: Any, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ConfigError for a callback that is not callable, and for names of tensors that the loop does not have."""
    if callback is not None and not callable(callback):
        raise ConfigError(
            f"callback_on_step_end must be callable as (pipeline, step, timestep, tensors), got {callback!r}"
        )
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"callback_on_step_end_tensor_inputs: {unknown} are unknown, choose among {list(known)}")
