"""The denoising loop and the way from latents to pixels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.conditioning import Conditions, predict
from makeup_plugin.marking import watermark

Generators = torch.Generator | list[torch.Generator] | None
# diffusers' names for what callbacks may see and change, and ours.
_CALLBACK_FIELDS = {"prompt_embeds": "tokens", "add_text_embeds": "pooled", "add_time_ids": "time_ids"}


def denoise(
    pipeline: Any,
    latents: Tensor,
    conditions: Conditions,
    *,
    steps: int,
    shading_scale: float,
    generator: Generators = None,
    callback: Callable | None = None,
    callback_inputs: Sequence[str] = ("latents",),
) -> Tensor:
    """Latents (N,4,h,w) of unit variance -> clean latents, by the pipeline's scheduler.

    With classifier-free guidance (Ho & Salimans 2022) `conditions` has 2N rows, the unconditional half first. A
    callback may end guidance (`pipeline._guidance_scale = 0`, as diffusers' cutoff callbacks do): then only the
    conditional half is kept. Raises ConfigError when it begins guidance that the call did not prepare, and for `steps`
    that the scheduler cannot make.
    """
    scheduler, count = pipeline.scheduler, len(latents)
    try:
        scheduler.set_timesteps(steps, device=latents.device)
    except ValueError as error:
        raise ConfigError(
            f"num_inference_steps={steps} is not possible with {type(scheduler).__name__}: {error}"
        ) from error
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    extra = _step_arguments(scheduler, generator)
    latents = latents * scheduler.init_noise_sigma
    pipeline._num_timesteps = len(scheduler.timesteps)
    with pipeline.progress_bar(total=len(scheduler.timesteps)) as progress:
        for index, timestep in enumerate(scheduler.timesteps):
            if pipeline.interrupt:
                break
            guided = pipeline.do_classifier_free_guidance
            if guided and len(conditions) != 2 * count:
                raise ConfigError(
                    f"guidance at step {index} needs {2 * count} rows of conditions, the unconditional half first, got"
                    f" {len(conditions)}: call the pipeline with guidance_scale > 1, and let a callback only end it"
                )
            inputs = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
            prediction = predict(
                pipeline.unet,
                inputs,
                timestep,
                conditions,
                identity_channel=pipeline.identity_channel,
                shading_channel=pipeline.shading_channel,
                shading_scale=shading_scale,
            )
            if guided:
                without, given = prediction.chunk(2)
                prediction = without + pipeline.guidance_scale * (given - without)
            latents = scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]
            if callback is not None:
                seen = {name: _callback_tensor(name, latents, conditions) for name in callback_inputs}
                changed = callback(pipeline, index, timestep, seen) or {}
                latents = changed.get("latents", latents)
                ours = {ours: changed[name] for name, ours in _CALLBACK_FIELDS.items() if name in changed}
                if not pipeline.do_classifier_free_guidance:
                    conditions, ours = _conditional_half(conditions, ours, count)
                conditions = replace(conditions, **ours) if ours else conditions
            progress.update()
    return latents


def decode(vae: AutoencoderKL, processor: VaeImageProcessor, latents: Tensor, *, output_type: str, marked: bool) -> Any:
    """Latents -> images as "pil", "np" (N,H,W,3) or "pt" (N,3,H,W) in [0,1], with the invisible mark if
    `marked`.
    """
    # SDXL's VAE overflows in half precision.
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.to(dtype=torch.float32)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    try:
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor + shift, return_dict=False)[0]
    finally:
        if upcast:
            vae.to(dtype=torch.float16)
    pixels = processor.postprocess(pixels.float(), output_type="pt")
    if marked:
        arrays = np.stack([watermark.embed(array) for array in pixels.cpu().permute(0, 2, 3, 1).numpy()])
        pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).to(pixels.device)
    if output_type == "pt":
        return pixels
    arrays = processor.pt_to_numpy(pixels)
    return arrays if output_type == "np" else processor.numpy_to_pil(arrays)


def seeds_of(generator: Generators, count: int) -> list[int | None]:
    """The seed of each image's generator."""
    generators = generator if isinstance(generator, list) else [generator] * count
    return [None if one is None else int(one.initial_seed()) for one in generators]


def _step_arguments(scheduler: Any, generator: Generators) -> dict[str, Any]:
    """Stochastic schedulers take the generator, others do not know the argument."""
    known = inspect.signature(scheduler.step).parameters
    return {"generator": generator} if "generator" in known else {}


def _conditional_half(
    conditions: Conditions, changed: dict[str, Tensor], count: int
) -> tuple[Conditions, dict[str, Tensor]]:
    """The last `count` rows of the conditions and of what a callback changed.

    diffusers' cutoff callbacks cut to the very last row, which stands for the whole half: ours is kept then.
    """
    half = replace(conditions, **{name: x[-count:] for name, x in conditions.tensors().items()})
    changed = {name: x[-count:] for name, x in changed.items()}
    return half, {
        name: x for name, x in changed.items() if len(x) == count or not torch.equal(x, getattr(half, name)[-1:])
    }


def _callback_tensor(name: str, latents: Tensor, conditions: Conditions) -> Tensor:
    return latents if name == "latents" else getattr(conditions, _CALLBACK_FIELDS[name])
