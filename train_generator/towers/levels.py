"""Draws the noise levels of the base's training, and weights them in the loss.

Most of a portrait is decided at middle noise: at one end of the schedule nothing is visible, at the other nothing is
left to do. A logit-normal draw (Esser et al. 2024, arXiv:2403.03206, section 3.1) visits the middle more often; min-SNR
weights (Hang et al. 2023, arXiv:2303.09556) reduce the weight of the ends of a uniform draw.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting
from makeup_plugin.diffusion import NoiseSchedule

Draw = Literal["uniform", "logit-normal"]


@dataclass(kw_only=True)
class LevelConfig:
    """Settings of the draw of noise levels, and of their weights in the loss.

    Raises ConfigError for an unknown draw, a deviation that is not positive, and a negative γ.
    """

    draw: Draw = setting(
        "uniform", "distribution of the noise levels; logit-normal is T · sigmoid(mean + deviation · n), n normal"
    )
    mean: float = setting(0.0, "of the logit-normal draw")
    deviation: float = setting(1.0, "of the logit-normal draw", above=0)
    min_snr: float = setting(0.0, "γ of the weights min(SNR, γ) / (SNR + 1) of a velocity's error; 0: none", least=0)

    def __post_init__(self) -> None:
        if self.draw not in get_args(Draw):
            raise ConfigError(f"levels.draw: must be one of {', '.join(get_args(Draw))}, got {self.draw!r}")
        check_bounds(self, "levels.")


def draw_timesteps(config: LevelConfig, count: int, total: int, generator: torch.Generator) -> Tensor:
    """Draws timesteps (count,) from 0 to total − 1, on the generator's device."""
    draw: dict[str, Any] = {"generator": generator, "device": generator.device}
    if config.draw == "uniform":
        return torch.randint(0, total, (count,), **draw)
    normal = torch.randn(count, **draw)
    return (total * torch.sigmoid(config.mean + config.deviation * normal)).long().clamp(max=total - 1)


def level_weights(config: LevelConfig, schedule: NoiseSchedule, timesteps: Tensor) -> Tensor | None:
    """Returns weights (B, 1, 1, 1) of the errors of predictions; None if all count the same."""
    if not config.min_snr:
        return None
    return schedule.min_snr_weights(timesteps, config.min_snr)[:, None, None, None]
