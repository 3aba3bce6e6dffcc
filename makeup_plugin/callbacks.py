"""diffusers' `callback_on_step_end` around our denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.conditioning import Conditions
from makeup_plugin.sampling import AfterStep, DenoisingState

# diffusers' names of the tensors that callbacks may see and change, and our names.
_FIELDS = {"prompt_embeds": "tokens", "add_text_embeds": "pooled", "add_time_ids": "time_ids"}


def callback_after_step(pipeline: Any, callback: Callable, names: Sequence[str]) -> AfterStep:
    """A diffusers callback as `after_step` of `denoise`.

    The callback is called as (pipeline, index, timestep, tensors) with the tensors of these `names`, and may return
    changed ones. It may also set the pipeline's guidance scale, as diffusers' cutoff callbacks do. Once guidance has
    ended, only the conditional half is kept.
    """

    def after_step(index: int, timestep: Tensor, state: DenoisingState) -> DenoisingState:
        conditions = state.conditions
        tensors = {name: state.latents if name == "latents" else getattr(conditions, _FIELDS[name]) for name in names}
        changed = _checked(callback(pipeline, index, timestep, tensors), state)
        ours = {ours: changed[name] for name, ours in _FIELDS.items() if name in changed}
        guided = pipeline.do_classifier_free_guidance
        if not guided:
            conditions, ours = _conditional_half(conditions, ours, len(state.latents))
        return DenoisingState(
            latents=changed.get("latents", state.latents),
            conditions=replace(conditions, **ours) if ours else conditions,
            guidance_scale=pipeline.guidance_scale if guided else min(pipeline.guidance_scale, 1.0),
        )

    return after_step


def _checked(changed: Any, state: DenoisingState) -> dict[str, Tensor]:
    """What a callback returned, without what it left as it was.

    Raises ConfigError unless it is None or a dictionary of tensors by name, each of the form of the one that it stands
    for; the texts' may have fewer rows, since diffusers' cutoff callbacks take half.
    """
    if changed is None:
        return {}
    if not isinstance(changed, dict):
        raise ConfigError(
            f"callback_on_step_end must return None or a dictionary of tensors, got {type(changed).__name__}"
        )
    found: dict[str, Tensor] = {}
    for name, value in changed.items():
        if name not in ("latents", *_FIELDS):
            continue
        before = state.latents if name == "latents" else getattr(state.conditions, _FIELDS[name])
        if value is before:
            continue
        if before is None:
            raise ConfigError(f'callback_on_step_end: "{name}" is not what this UNet reads: leave it out')
        what = f'callback_on_step_end: "{name}"'
        if not isinstance(value, Tensor):
            raise ConfigError(f"{what} must be a tensor of the form {tuple(before.shape)}, got {type(value).__name__}")
        rows = len(value) if value.ndim else 0
        fewer = name != "latents" and 0 < rows < len(before)
        if value.shape[1:] != before.shape[1:] or (rows != len(before) and not fewer):
            raise ConfigError(f"{what} must be of the form {tuple(before.shape)}, got {tuple(value.shape)}")
        if value.is_meta or value.layout != torch.strided or not value.is_floating_point():
            raise ConfigError(f"{what} must hold floating-point numbers, got a {value.dtype} on {value.device}")
        found[name] = value
    return found


def in_order(hooks: Sequence[AfterStep]) -> AfterStep:
    """Several changes after a step, one after another."""

    def after_step(index: int, timestep: Tensor, state: DenoisingState) -> DenoisingState:
        for hook in hooks:
            state = hook(index, timestep, state)
        return state

    return after_step


def _conditional_half(
    conditions: Conditions, changed: dict[str, Tensor], count: int
) -> tuple[Conditions, dict[str, Tensor]]:
    """The last `count` rows of the conditions and of the tensors that a callback changed.

    diffusers' cutoff callbacks cut to the very last row, which stands for the whole half. Our half is kept then.
    """
    half = replace(conditions, **{name: x[-count:] for name, x in conditions.tensors().items()})
    changed = {name: x[-count:] for name, x in changed.items()}
    return half, {
        name: x for name, x in changed.items() if len(x) == count or not torch.equal(x, getattr(half, name)[-1:])
    }
