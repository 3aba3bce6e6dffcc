"""The input of every loss term: a batch, the noise that was added to it, and the model's prediction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from makeup_plugin.conditioning import Conditions, concatenate
from makeup_plugin.diffusion import NoiseSchedule


@dataclass(frozen=True, kw_only=True)
class Sample:
    """B noised samples and the model's prediction for them, all on one device.

    batch: fields of `GenerationSource`. conditions: of the model, B rows. knows_person (B,): whether the joint encoder
    or the identity channel sees the person. noise, noisy, prediction (B, C, h, w): at timesteps (B,) of `schedule`.
    alignment (): semantic alignment loss of the attention behind the prediction.
    """

    batch: Mapping[str, Tensor]
    conditions: Conditions
    knows_person: Tensor
    schedule: NoiseSchedule
    noise: Tensor
    noisy: Tensor
    timesteps: Tensor
    prediction: Tensor
    alignment: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def clean(self) -> Tensor:
        """The true latents (B, C, h, w)."""
        return self.batch["latents"]

    def estimate(self, rows: Tensor) -> Tensor:
        """Returns the clean latents (N, C, h, w) that the prediction implies for `rows` (N,)."""
        return self.schedule.clean(self.prediction[rows].float(), self.noisy[rows], self.timesteps[rows])


def join(samples: Sequence[Sample], *, batch: Mapping[str, Tensor], alignment: Tensor) -> Sample:
    """Joins the samples of a batch's parts to a sample of the whole `batch` with this `alignment`."""
    names = ("knows_person", "noise", "noisy", "timesteps", "prediction")
    tensors: dict[str, Any] = {name: torch.cat([getattr(sample, name) for sample in samples]) for name in names}
    return replace(
        samples[0],
        batch=batch,
        conditions=concatenate([sample.conditions for sample in samples]),
        alignment=alignment,
        **tensors,
    )
