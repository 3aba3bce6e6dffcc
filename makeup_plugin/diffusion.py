"""The noise schedule: how noise is mixed into latents, what the network is asked to predict, and what follows from it.

A schedule mixes `√ᾱ_t · clean + √(1 − ᾱ_t) · noise` at timestep t (Ho et al. 2020, arXiv:2006.11239, eq. 4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from faceclip.errors import ConfigError

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseSchedule:
    """Shares of signal and the kind of prediction of a diffusion model.

    alphas_cumprod: ᾱ (T,) in [0, 1], the signal's share of the power at each timestep. prediction_type: "epsilon" (the
    noise), "v_prediction" (the velocity) or "sample" (the clean latents).

    Timesteps are integers (B,) in 0 … T − 1, latents (B, …). Raises ConfigError for another prediction type.
    """

    alphas_cumprod: Tensor
    prediction_type: str

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION_TYPES:
            raise ConfigError(f"prediction_type must be one of {PREDICTION_TYPES}, got {self.prediction_type!r}")

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Self:
        """The schedule of a diffusers scheduler that has `alphas_cumprod`."""
        return cls(alphas_cumprod=scheduler.alphas_cumprod.float(), prediction_type=scheduler.config.prediction_type)

    def __len__(self) -> int:
        """Number of timesteps."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> Self:
        """The same schedule on a device, so that no call has to move it."""
        return replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def signal_and_sigma(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 − ᾱ_t) in the dtype of `like` (B, …), shaped (B, 1, …) to be multiplied with it."""
        alpha = self._alpha(timesteps).to(like.dtype).view(-1, *[1] * (like.ndim - 1))
        return alpha.sqrt(), (1 - alpha).sqrt()

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents; Ho et al. 2020, eq. 4."""
        signal, sigma = self.signal_and_sigma(timesteps, clean)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should predict; the velocity as in Salimans & Ho 2022 (arXiv:2202.00512), eq. 12."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return clean
        signal, sigma = self.signal_and_sigma(timesteps, clean)
        return signal * noise - sigma * clean

    def clean(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that a prediction implies; Song et al. 2021 (DDIM, arXiv:2010.02502), eq. 12, and for the
        velocity Salimans & Ho 2022, appendix D."""
        if self.prediction_type == "sample":
            return prediction
        signal, sigma = self.signal_and_sigma(timesteps, noisy)
        if self.prediction_type == "v_prediction":
            return signal * noisy - sigma * prediction
        return (noisy - sigma * prediction) / signal

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1 − ᾱ_t), (B,) in fp32."""
        alpha = self._alpha(timesteps).float()
        return alpha / (1 - alpha)

    def min_snr_weights(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR-γ weights (B,) of the per-sample error; Hang et al. 2023 (arXiv:2303.09556), section 3.4.

        They are min(SNR, γ) for a prediction of the clean latents; the same in terms of errors of noise or velocity.
        """
        snr = self.snr(timesteps)
        clipped = snr.clamp(max=gamma)
        if self.prediction_type == "epsilon":
            return clipped / snr
        return clipped / (snr + 1) if self.prediction_type == "v_prediction" else clipped

    def noise_again(
        self, clean: Tensor, timesteps: Tensor, generator: torch.Generator, *, least: float = 0.5
    ) -> tuple[Tensor, Tensor]:
        """Estimated clean latents (B, C, h, w) with fresh noise, for networks that read noisy latents, and the
        timesteps (B,) of that noise, drawn between `least` times those of the estimate and these themselves.

        An estimate made at high noise is smoother than any true latents; under fresh noise, details that are too fine
        for it cannot please the reader.
        """
        draw: dict[str, Any] = {"generator": generator, "device": clean.device}
        lower = (timesteps * (least + (1 - least) * torch.rand(timesteps.shape, **draw))).long()
        return self.add_noise(clean, torch.randn(clean.shape, **draw), lower), lower

    def _alpha(self, timesteps: Tensor) -> Tensor:
        return self.alphas_cumprod.to(timesteps.device)[timesteps]
