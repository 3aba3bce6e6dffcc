"""Data order as a pure function: which sample comes when depends on (seed, position) alone, never on history."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faceclip.errors import EmptyDatasetError


class MapSource(ABC):
    """A data source by index. It gives `get`, or whole batches by `get_batch`."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Sample `index`; every random draw must come from `rng`, seeded by (seed, sample, epoch)."""
        return {name: value[0] for name, value in self.get_batch([index], [rng]).items()}

    def get_batch(self, indices: list[int], rngs: list[np.random.Generator]) -> dict[str, Any]:
        """One batch, each sample drawn from its own generator."""
        return self.collate([self.get(index, rng) for index, rng in zip(indices, rngs, strict=True)])

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of samples."""
        return stack(samples)


class OrderedSampler:
    """The endless stream of (index, epoch): each epoch is a new permutation, drawn from (seed, epoch)."""

    def __init__(self, length: int, seed: int) -> None:
        if length < 1:
            raise EmptyDatasetError(
                f"length={length}: the data source has no samples: check the data directory and split"
            )
        self.length, self.seed = length, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def at(self, position: int) -> tuple[int, int]:
        """Sample index and epoch at a position of the stream."""
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.length)
            self._epoch = epoch
        return int(self._order[offset]), epoch

    def slots(self, start: int, count: int) -> list[tuple[int, int]]:
        """`count` consecutive (index, epoch) pairs."""
        return [self.at(position) for position in range(start, start + count)]


def sample_rng(seed: int, index: int, epoch: int) -> np.random.Generator:
    """The generator of one sample in one epoch."""
    return np.random.default_rng([seed, 1, index, epoch])


def fetch(source: MapSource, slots: Sequence[tuple[int, int]], seed: int) -> dict[str, Any]:
    """One collated batch for (index, epoch) pairs."""
    indices = [index for index, _ in slots]
    rngs = [sample_rng(seed, index, epoch) for index, epoch in slots]
    return source.get_batch(indices, rngs)


def stack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack arrays, tensors and numbers field by field; anything else becomes a list."""
    batch: dict[str, Any] = {}
    for key in samples[0]:
        values = [sample[key] for sample in samples]
        if isinstance(values[0], Tensor):
            batch[key] = torch.stack(values)
        elif isinstance(values[0], np.ndarray | np.generic | int | float | bool):
            batch[key] = torch.from_numpy(np.stack(values))
        else:
            batch[key] = values
    return batch
