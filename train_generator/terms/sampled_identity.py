"""Reward-feedback loss (ReFL) on the identity: the facial perceptual loss on pictures that the model draws itself.

At low noise a noised training picture still shows the person, and at high noise the estimated clean picture is too
smooth to distinguish people, so the identity loss on training pictures teaches the conditions little. Here the model
samples from noise without gradient, except for its last prediction (reward feedback learning, Xu et al. 2023,
arXiv:2304.05977; PuLID, Guo et al. 2024, arXiv:2404.16022, applies its identity loss to four-step samples).
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
    """Returns the positions of the sampler's timesteps that are at most `sampled_below`.

    Raises ConfigError if there is none, or if there are more steps than the scheduler has.
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
    """Samples from noise (B, C, h, w) by DDIM with `steps` steps, without guidance, and returns the clean latents
    (B, C, h, w) estimated at position `stop`; only this last estimate has a gradient.

    schedule: that of the pipeline's scheduler, on the noise's device.
    """
    channels = {"identity_channel": pipeline.identity_channel, "shading_channel": pipeline.shading_channel}
    scheduler, latents = pipeline.scheduler, noise
    # Timesteps are numbers on the host, because the scheduler's look-ups would wait for those of a GPU.
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
    """Returns the timestep of all latents, (B,) on their device."""
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
    """Returns the mean of 1 − cosine to the person in pictures drawn from noise, stopped at a random one of `stops`.

    The first `limit` samples that know person and pose count; the loss is 0 if there are none. drawn: index of the
    stop, if the caller draws it for all ranks; then `limit` pictures are always drawn (or one for each of fewer
    samples), and those that do not count have weight 0 (`train_generator.terms.rows`).
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
    """Returns the same for pictures stopped at `stop`, over all samples that know person and pose, `at_once` at a
    time."""
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
    """Returns which samples (B,) know the person, and by the shading map where the face will be."""
    return sample.batch["keep_shading"] & sample.knows_person
