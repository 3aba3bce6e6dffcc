"""Weights errors by the region of each pixel: a smile or a thin rim is a few pixels among thousands of background."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceclip.data.records import REGIONS
from faceclip.errors import ConfigError


def weight_table(weights: Mapping[str, float]) -> NDArray[np.float32]:
    """Returns the weight of every label of `REGIONS` (R,); regions that `weights` does not name have weight 1.

    Raises ConfigError for an unknown region and for a weight that is not positive.
    """
    table = np.ones(len(REGIONS), np.float32)
    for name, weight in weights.items():
        if name not in REGIONS:
            raise ConfigError(f"region_weights.{name}: no such region; known: {', '.join(REGIONS)}")
        if not 0 < weight < float("inf"):
            raise ConfigError(f"region_weights.{name}: must be a positive number, got {weight}")
        table[REGIONS.index(name)] = weight
    return table


def region_weights(regions: NDArray[np.uint8], table: NDArray[np.float32], *, side: int) -> Tensor:
    """Returns weights (B, 1, side, side) of label maps (B, S, S), averaged over each cell. S is a multiple of
    `side`."""
    count, size = regions.shape[:2]
    cell = size // side
    cells = table[regions].reshape(count, side, cell, side, cell)
    return torch.from_numpy(cells.mean(axis=(2, 4)))[:, None]


def weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted mean of errors (B, C, h, w); the scale of weights (B, 1, h, w) does not matter."""
    return (errors * weights).mean() / weights.mean()
