"""Learning-rate schedule and parameter groups."""

import math
from collections.abc import Iterable
from typing import Any

from torch import nn


def rate_factor(step: int, *, steps: int, warmup: int, schedule: str, min_ratio: float) -> float:
    """Factor on the base rate for optimizer step `step` (from 0).

    Linear warm-up over `warmup` steps, then constant, or half a cosine down to `min_ratio` at the last step
    (Loshchilov & Hutter 2017, equation 5, without restarts).
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels decay; biases, gains and scalars do not."""
    decayed, free = [], []
    for _, parameter in named:
        (decayed if parameter.ndim >= 2 else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
