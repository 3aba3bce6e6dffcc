"""Reward-feedback loss (ReFL) on whose face the model draws: the facial perceptual loss on pictures of its own.

In a noised training picture the person is still to be seen at low noise, and at high noise the estimate of the clean
picture is too smooth to tell people apart: the identity loss there teaches the conditions little. Here the model
samples from noise, without gradient, and only its last look has one (reward feedback learning, Xu et al. 2023,
arXiv:2304.05977; PuLID, Guo et al. 2024, arXiv:2404.16022, has its identity loss on four-step samples).
"""

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.conditioning import Conditions, predict
from makeup_plugin.diffusion import NoiseSchedule
from train_generator.config import LossConfig
from train_generator.terms.identity import LatentFaces
from train_generator.terms.rows import chosen_rows
from train_generator.terms.sample import Sample


def sampler_stops(scheduler: DDIMScheduler, config: LossConfig) -> list[int]:
    """Positions of the sampler's timesteps that are at most `sampled_below`.

    Raises ConfigError when there is none, and for more steps than the scheduler has.
    """
    if config.sampled_steps > scheduler.config.num_train_timesteps:
        raise ConfigError(
            f"loss.sampled_steps={config.sampled_steps}: the scheduler has {scheduler.config.num_train_timesteps} steps"
        )
    scheduler.set_timesteps(config.sampled_steps)
    stops = [position for position, time in enumerate(scheduler.timesteps.tolist()) if time <= config.sampled_below]
    if not stops:
        raise ConfigError(
            f"loss.sampled_below={config.sampled_below}: the sampler's timesteps are {scheduler.timesteps.tolist()}; "
            "give at least the last of them, or more loss.sampled_steps"
        )
    return stops


def sampled_estimate(
    pipeline: FaceMakeUpPipeline,
    conditions: Conditions,
    noise: Tensor,
    *,
    steps: int,
    stop: int,
    schedule: NoiseSchedule,
) -> Tensor:
    """Clean latents (B, C, h, w) estimated at position `stop` of a DDIM sampler of `steps` steps from noise (B, C, h,
    w), without guidance; only this last estimate has a gradient. schedule: that of the pipeline's scheduler, on the
    noise's device."""
    channels = {"identity_channel": pipeline.identity_channel, "shading_channel": pipeline.shading_channel}
    scheduler, latents = pipeline.scheduler, noise
    # Timesteps as numbers of the host: the scheduler looks up its tables by them, and would wait for a GPU's.
    scheduler.set_timesteps(steps)
    *before, last = scheduler.timesteps.tolist()[: stop + 1]
    with torch.no_grad():
        for time in before:
            prediction = predict(pipeline.unet, latents, _times(time, latents), conditions, **channels)
            latents = scheduler.step(prediction.float(), time, latents, return_dict=False)[0]
    times = _times(last, latents)
    prediction = predict(pipeline.unet, latents, times, conditions, **channels)
    return schedule.clean(prediction.float(), latents, times)


def _times(time: int, latents: Tensor) -> Tensor:
    """One timestep for all latents, on their device."""
    return torch.full((len(latents),), time, device=latents.device)


def sampled_identity_loss(
    sample: Sample,
    pipeline: FaceMakeUpPipeline,
    faces: LatentFaces,
    generator: torch.Generator,
    *,
    steps: int,
    stops: Sequence[int],
    limit: int,
    drawn: int | None = None,
) -> Tensor:
    """1 − cosine to the person in pictures that the model draws from noise, left at a random one of `stops`.

    Of the samples that know person and pose the first `limit` count; 0 without any. drawn: which of the stops, drawn by
    the caller for all ranks; then always `limit` pictures are drawn (or one for each of fewer samples), and those that
    do not count weigh nothing (`train_generator.terms.rows`).
    """
    device, knows = sample.clean.device, _knows_person_and_pose(sample)
    noise = torch.randn((limit, *sample.clean.shape[1:]), generator=generator, device=device)
    fixed = drawn is not None
    if drawn is None:
        drawn = int(torch.randint(len(stops), (1,), generator=generator, device=device))
    ranked = (~knows).int().argsort(stable=True)[:limit]
    chosen = chosen_rows(ranked, knows, fixed=fixed)
    if len(chosen) == 0:
        return sample.clean.sum() * 0.0
    rows, weights = chosen.rows, chosen.weights
    return _distance(sample, pipeline, faces, rows, noise[: len(rows)], weights=weights, steps=steps, stop=stops[drawn])


def finished_identity_distance(
    sample: Sample,
    pipeline: FaceMakeUpPipeline,
    faces: LatentFaces,
    generator: torch.Generator,
    *,
    steps: int,
    stop: int,
    at_once: int,
) -> float:
    """The same of pictures left at `stop`, on all samples that know person and pose, `at_once` at a time."""
    noise = torch.randn(sample.clean.shape, generator=generator, device=sample.clean.device)
    known, total = _knows_person_and_pose(sample).nonzero().flatten(), 0.0
    for rows in known.split(at_once):
        distance = _distance(sample, pipeline, faces, rows, noise[rows], steps=steps, stop=stop)
        total += float(distance) * len(rows) / len(known)
    return total


def _distance(
    sample: Sample,
    pipeline: FaceMakeUpPipeline,
    faces: LatentFaces,
    rows: Tensor,
    noise: Tensor,
    *,
    weights: Tensor | None = None,
    steps: int,
    stop: int,
) -> Tensor:
    conditions = sample.conditions.take(rows)
    estimate = sampled_estimate(pipeline, conditions, noise, steps=steps, stop=stop, schedule=sample.schedule)
    return faces.distance(estimate, sample, rows, weights)


def _knows_person_and_pose(sample: Sample) -> Tensor:
    """(B,) bool; where the face will be is known from the shading map alone."""
    return sample.batch["keep_shading"] & sample.knows_person
