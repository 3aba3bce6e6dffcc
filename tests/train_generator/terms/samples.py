"""Samples of stage 2 without a model: what was predicted is random."""

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from makeup_plugin.conditioning import Conditions, time_ids
from makeup_plugin.diffusion import NoiseSchedule
from train_generator.terms.sample import Sample

TEMPLATE = torch.tensor([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]]) / 112


def sample_of(timesteps: list[int], knows_person: list[bool], kind: str = "epsilon", **batch: Tensor) -> Sample:
    """Latents (B, 4, 8, 8) of 32 px pictures and identities of 32 numbers, unless `batch` says otherwise; the
    prediction wants a gradient."""
    generator, count = torch.Generator().manual_seed(0), len(timesteps)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    given = {"latents": normal(4, 8, 8), "target_identity": normal(32), "landmarks": 32 * TEMPLATE.expand(count, 5, 2)}
    given |= batch
    schedule = NoiseSchedule.from_scheduler(DDIMScheduler(beta_schedule="scaled_linear", prediction_type=kind))
    noise, steps = torch.randn(given["latents"].shape, generator=generator), torch.tensor(timesteps)
    return Sample(
        batch=given,
        conditions=Conditions(tokens=normal(77, 8), pooled=normal(8), time_ids=time_ids(32, 32, count)),
        knows_person=torch.tensor(knows_person),
        schedule=schedule,
        noise=noise,
        noisy=schedule.add_noise(given["latents"], noise, steps),
        timesteps=steps,
        prediction=torch.randn(noise.shape, generator=generator).requires_grad_(),
        alignment=torch.tensor(0.0),
    )


def gradient_rows(loss: Tensor, sample: Sample) -> list[bool]:
    """Which rows of the prediction a loss depends on."""
    (gradient,) = torch.autograd.grad(loss, sample.prediction)
    return (gradient.flatten(1).abs().amax(dim=1) > 0).tolist()
