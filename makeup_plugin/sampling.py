"""The denoising loop and the way from latents to pixels."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg
from torch import Tensor

from faceclip.errors import ConfigError, NonFiniteLatentsError
from makeup_plugin.conditioning import Conditions, predict
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.latents import Generators, from_unit_scale, in_range
from makeup_plugin.marking import watermark
from makeup_plugin.shading import ShadingResiduals, rows_with_map


@dataclass(frozen=True, kw_only=True)
class DenoisingState:
    """The state that one step hands to the next.

    latents: (N, C, h, w). guidance_scale: above 1 there is guidance. conditions: 2N rows with guidance, the
    unconditional half first, and N rows without it.
    """

    latents: Tensor
    conditions: Conditions
    guidance_scale: float


# Called before a step with its index, the UNet's inputs, its timestep and the conditions.
ResidualsAt = Callable[[int, Tensor, Tensor, Conditions], ShadingResiduals | None]
# Called after a step with its index, its timestep and the state; returns the state that the next step starts from.
AfterStep = Callable[[int, Tensor, DenoisingState], DenoisingState]


def make_timesteps(
    scheduler: Any,
    steps: int,
    device: torch.device | str,
    *,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Tensor:
    """Prepare a scheduler for one pass of `steps` steps, and return its timesteps.

    timesteps, sigmas: a schedule of your own in place of `steps`; one of the two, in descending order.

    Raises ConfigError for a schedule that the scheduler cannot make, and for schedulers of flow matching.
    """
    _check_steps(scheduler)
    if not hasattr(scheduler, "scale_model_input") or not hasattr(scheduler, "init_noise_sigma"):
        raise ConfigError(
            f"scheduler: {type(scheduler).__name__} is made for flow matching, and this UNet predicts noise: use"
            " DDIMScheduler, EulerDiscreteScheduler or another one of diffusers' KarrasDiffusionSchedulers"
        )
    given: dict[str, Any] = {
        name: list(x) for name, x in (("timesteps", timesteps), ("sigmas", sigmas)) if x is not None
    }
    kind = type(scheduler).__name__
    if len(given) > 1:
        raise ConfigError("timesteps and sigmas exclude each other: give one")
    for name, values in given.items():
        if not values:
            raise ConfigError(f"{name}: an empty schedule draws nothing; give at least one, or leave {name} out")
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise ConfigError(f"{name}: {kind} takes no {name} of its caller; leave it out, or use another scheduler")
    wanted = f"{next(iter(given))}={next(iter(given.values()))}" if given else f"num_inference_steps={steps}"
    try:
        scheduler.set_timesteps(**(given or {"num_inference_steps": steps}), device=device)
    except (ValueError, TypeError, IndexError, AssertionError) as error:
        raise ConfigError(f"{wanted} is not possible with {kind}: {error}") from error
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    if len(scheduler.timesteps) > 1 and scheduler.timesteps[0] < scheduler.timesteps[-1]:
        raise ConfigError(f"scheduler: {kind} goes from pictures to noise, which draws nothing: use the one it inverts")
    return scheduler.timesteps


def _check_steps(scheduler: Any) -> None:
    """Raises ConfigError unless the scheduler's steps need nothing but the prediction, the timestep and the latents."""
    step = getattr(scheduler, "step", None)
    parameters = inspect.signature(step).parameters.values() if callable(step) else ()
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if not callable(step) or len(needed) > 3:
        lacks = f"needs {', '.join(needed[3:])}" if needed else "takes no steps of denoising"
        raise ConfigError(
            f"scheduler: {type(scheduler).__name__} {lacks}: use DDIMScheduler, EulerDiscreteScheduler or another one"
            " of diffusers' KarrasDiffusionSchedulers"
        )


def steps_until(scheduler: Any, timesteps: Tensor, end: float) -> Tensor:
    """The timesteps of the first part of the noise, `end` of it in (0, 1], as diffusers' `denoising_end` counts them.

    Raises ConfigError where no step is left.
    """
    if end == 1:
        return timesteps
    total = scheduler.config.num_train_timesteps
    kept = timesteps[: int((timesteps >= round(total - end * total)).sum())]
    if not len(kept):
        raise ConfigError(f"denoising_end={end} leaves no step of {len(timesteps)}: give more steps, or a later end")
    return kept


def steps_after(scheduler: Any, timesteps: Tensor, start: float) -> Tensor:
    """The timesteps after the first part of the noise, `start` of it in (0, 1), as diffusers' `denoising_start` counts
    them; the scheduler begins there.

    Raises ConfigError where no step is left, and for schedulers of second order, which cannot be split there.
    """
    if scheduler.order != 1:
        raise ConfigError(
            f"denoising_start: {type(scheduler).__name__} takes two passes for a step, and the latents of"
            " denoising_end may lie between them; use DDIMScheduler, EulerDiscreteScheduler or another of first order"
        )
    total = scheduler.config.num_train_timesteps
    count = int((timesteps < round(total - start * total)).sum())
    if not count:
        raise ConfigError(
            f"denoising_start={start} leaves no step of {len(timesteps)}: give more steps, or an earlier start"
        )
    first = len(timesteps) - count
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return timesteps[first:]


def denoise(
    unet: UNet2DConditionModel,
    scheduler: Any,
    latents: Tensor,
    conditions: Conditions,
    *,
    timesteps: Iterable[Tensor],
    guidance_scale: float = 1.0,
    identity_channel: IdentityChannel | None = None,
    shading_channel: ControlNetModel | None = None,
    shading_scale: float = 1.0,
    residuals: ResidualsAt | None = None,
    guidance_rescale: float = 0.0,
    eta: float = 0.0,
    timestep_cond: Tensor | None = None,
    cross_attention_kwargs: dict[str, Any] | None = None,
    started: bool = False,
    generator: Generators = None,
    before_step: Callable[[int], None] | None = None,
    after_step: AfterStep | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> Tensor:
    """Latents (N, C, h, w) of unit variance -> clean latents, with classifier-free guidance (Ho & Salimans 2022,
    arXiv:2207.12598) where `guidance_scale` is above 1.

    Args:
        conditions: N rows, or 2N rows with guidance, the unconditional half first.
        timesteps: those of `make_timesteps` for this scheduler, also inside a progress bar.
        identity_channel, shading_channel, shading_scale, timestep_cond, cross_attention_kwargs: as for `predict`.
        residuals: what other ControlNets add at a step, called with its index, the inputs of the UNet, the timestep and
            the conditions.
        guidance_rescale: how far the guided prediction is brought back to the standard deviation of the conditional one
            (Lin et al. 2023, arXiv:2305.08891, section 3.4), 0 to 1.
        eta: of DDIM (Song et al. 2020, arXiv:2010.02502), for schedulers that have it.
        started: the latents already have the noise of the first timestep, as where a picture is edited.
        generator: one generator, or one per image, for schedulers that draw noise.
        before_step: called with the index of a step before it runs.
        after_step: may change latents and conditions, and may end guidance. It then returns the conditional half only.
        interrupted: called before every step. True ends the loop with the latents of the last step.

    Raises ConfigError when guidance has no unconditional half, as when `after_step` begins it late;
    NonFiniteLatentsError, which names the step, when latents become NaN or infinite.
    """
    extra = _step_arguments(scheduler, generator, eta)
    finite: list[Tensor] = []
    begin = latents if started else latents * scheduler.init_noise_sigma
    state = DenoisingState(latents=begin, conditions=conditions, guidance_scale=guidance_scale)
    seen, rows = None, None
    with nullcontext() if identity_channel is None else identity_channel.remembering():
        for index, timestep in enumerate(timesteps):
            if interrupted is not None and interrupted():
                break
            if before_step is not None:
                before_step(index)
            latents, guided = state.latents, state.guidance_scale > 1
            if guided and len(state.conditions) != 2 * len(latents):
                raise ConfigError(
                    f"guidance at step {index} needs {2 * len(latents)} rows of conditions, the unconditional half"
                    f" first, got {len(state.conditions)}: call the pipeline with guidance_scale > 1, and let a"
                    " callback only end it"
                )
            if state.conditions is not seen:
                seen, rows = state.conditions, rows_with_map(state.conditions.shading_keep)
            inputs = scheduler.scale_model_input(torch.cat([latents] * 2) if guided else latents, timestep)
            prediction = predict(
                unet,
                inputs,
                timestep,
                state.conditions,
                identity_channel=identity_channel,
                shading_channel=shading_channel,
                shading_scale=shading_scale,
                shading_rows=rows,
                residuals=None if residuals is None else residuals(index, inputs, timestep, state.conditions),
                timestep_cond=timestep_cond,
                cross_attention_kwargs=cross_attention_kwargs,
            )
            if guided:
                without, given = prediction.chunk(2)
                prediction = without + state.guidance_scale * (given - without)
                if guidance_rescale > 0:
                    prediction = rescale_noise_cfg(prediction, given, guidance_rescale)
            latents = scheduler.step(prediction, timestep, latents, **extra, return_dict=False)[0]
            finite.append(torch.isfinite(latents).all())  # looked at in the end: asking at each step would wait for it
            state = replace(state, latents=latents)
            if after_step is not None:
                state = after_step(index, timestep, state)
    _check_finite(finite, state.latents)
    return state.latents


def _check_finite(finite: list[Tensor], latents: Tensor) -> None:
    """Raises NonFiniteLatentsError naming the first step, counted from 1, whose latents are not `finite`."""
    flags = torch.stack([*finite, torch.isfinite(latents).all()]).tolist()
    if not all(flags):
        step = min(flags.index(False) + 1, len(finite))
        raise NonFiniteLatentsError(
            f"the latents hold NaN or infinity after step {step} of {len(finite)}: look for NaN in what was put on the"
            " model last (a LoRA, an adapter), for a callback that makes some, or use a wider dtype than"
            f" {str(latents.dtype).removeprefix('torch.')}"
        )


def decode(
    vae: AutoencoderKL,
    processor: VaeImageProcessor,
    latents: Tensor,
    *,
    output_type: str,
    marked: bool,
    finish: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """Latents -> images as "pil", "np" (N,H,W,3) or "pt" (N,3,H,W) in [0,1], with the watermark if `marked`.

    finish: what happens to the pixels (N,3,H,W) in the end.
    """
    with in_range(vae):
        pixels = vae.decode(from_unit_scale(vae, latents.to(vae.dtype)), return_dict=False)[0]
    if not bool(torch.isfinite(pixels).all()):
        raise NonFiniteLatentsError(
            f"the pixels hold NaN or infinity: the autoencoder in {str(vae.dtype).removeprefix('torch.')} cannot decode"
            " these latents; use it in float32, by pipeline.vae.to(torch.float32)"
        )
    pixels = processor.postprocess(pixels.float(), output_type="pt")
    if marked:
        arrays = np.stack([watermark.embed(array) for array in pixels.cpu().permute(0, 2, 3, 1).numpy()])
        pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2).to(pixels.device)
    if finish is not None:
        pixels = finish(pixels)
    if output_type == "pt":
        return pixels
    arrays = processor.pt_to_numpy(pixels)
    return arrays if output_type == "np" else processor.numpy_to_pil(arrays)


def seeds_of(generator: Generators, count: int) -> list[int | None]:
    """The seed of each image's generator."""
    generators = generator if isinstance(generator, list) else [generator] * count
    return [None if one is None else int(one.initial_seed()) for one in generators]


def guidance_embedding(scale: float, count: int, unet: UNet2DConditionModel) -> Tensor | None:
    """The guidance scale as an input (count, time_cond_proj_dim) of a UNet that was distilled with it, else None.

    Sines and cosines of 1000 (scale - 1) as in Meng et al. 2022 (arXiv:2210.03142) and diffusers.
    """
    width = unet.config.get("time_cond_proj_dim")
    if width is None:
        return None
    frequencies = torch.exp(torch.arange(width // 2) * -(math.log(10000.0) / (width // 2 - 1)))
    angles = (1000.0 * torch.tensor(scale - 1.0)) * frequencies
    embedding = F.pad(torch.cat([angles.sin(), angles.cos()]), (0, width % 2))
    return embedding.expand(count, -1).to(unet.device, unet.dtype)


def _step_arguments(scheduler: Any, generator: Generators, eta: float) -> dict[str, Any]:
    """Arguments of the scheduler's step: stochastic schedulers take the generator, others do not have the argument.

    Raises ConfigError for an eta that the scheduler does not have.
    """
    known = inspect.signature(scheduler.step).parameters
    if eta != 0 and "eta" not in known:
        raise ConfigError(f"eta={eta}: {type(scheduler).__name__} has no eta; leave it out, or use DDIMScheduler")
    extra: dict[str, Any] = {"generator": generator} if "generator" in known else {}
    return {**extra, "eta": eta} if eta != 0 else extra
