"""diffusers' `callback_on_step_end` around our denoising loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

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
        changed = callback(pipeline, index, timestep, tensors) or {}
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
