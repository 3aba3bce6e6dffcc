"""Optimizer, learning-rate schedule and parameter groups."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from faceclip.errors import ConfigError
from faceclip.training.int8_moments import Int8AdamW
from faceclip.training.interfaces import TrainerConfig
from faceclip.training.muon import MuonAdamW, muon_groups


def make_optimizer(
    config: TrainerConfig, trainable: Mapping[str, nn.Parameter], groups: list[dict[str, Any]] | None, *, whole: bool
) -> torch.optim.AdamW:
    """Returns the optimizer of a run.

    trainable: parameters by name. groups: the task's own groups, or None. whole: whether every process holds whole
    weights.

    Raises ConfigError for Muon with divided weights or with a task's own groups, and for moments of 8 bits with Muon or
    with divided weights.
    """
    rates: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if config.moments == "int8" and (config.optimizer != "adamw" or not whole):
        raise ConfigError(
            "trainer.moments: int8 needs trainer.optimizer=adamw and whole weights in every process (no ZeRO, which "
            "splits the moments itself): set it to fp32"
        )
    if config.optimizer == "muon":
        if groups is not None or not whole:
            raise ConfigError(
                "trainer.optimizer: muon needs whole weights in every process and a task without parameter groups of "
                "its own; set it to adamw"
            )
        return MuonAdamW(muon_groups(trainable.items(), config.weight_decay), **rates)
    kind = Int8AdamW if config.moments == "int8" else torch.optim.AdamW
    return kind(groups or decay_groups(trainable.items(), config.weight_decay), **rates)


def rate_factor(step: int, *, steps: int, warmup: int, schedule: str, min_ratio: float) -> float:
    """Returns the factor on the base rate for optimizer step `step` (from 0).

    The factor rises linearly over `warmup` steps. Then it is constant, or falls as half a cosine to `min_ratio` at the
    last step (Loshchilov & Hutter 2017, equation 5, without restarts).
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Returns two groups: matrices and kernels with weight decay; biases, gains and scalars without."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for _, parameter in named:
        (decayed if parameter.ndim >= 2 else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
