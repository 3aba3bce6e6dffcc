"""Data order as a pure function: the sample at a position depends on (seed, position) alone, never on history."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceclip.errors import EmptyDatasetError


class MapSource(ABC):
    """A data source by index. Subclasses implement `get`, or `get_batch` for whole batches."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Numbers (N,) that are equal for samples that may share a batch; None if all may."""
        return None

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns sample `index`. All random draws must come from `rng`, which is seeded by (seed, sample, epoch)."""
        return {name: value[0] for name, value in self.get_batch([index], [rng]).items()}

    def get_batch(self, indices: list[int], rngs: list[np.random.Generator]) -> dict[str, Any]:
        """Returns one batch; each sample draws from its own generator."""
        return self.collate([self.get(index, rng) for index, rng in zip(indices, rngs, strict=True)])

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Joins samples to a batch."""
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
        """Returns the sample index and the epoch at a position of the stream."""
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.length)
            self._epoch = epoch
        return int(self._order[offset]), epoch

    def slots(self, start: int, count: int) -> list[tuple[int, int]]:
        """Returns `count` consecutive pairs (index, epoch) from position `start` on."""
        return [self.at(position) for position in range(start, start + count)]


class GroupedSampler:
    """The endless stream of (index, epoch) whose batches hold samples of one group each.

    An epoch is a permutation of each group, cut into batches of which the last is filled up from the group's beginning,
    and a permutation of all batches, all drawn from (seed, epoch).
    """

    def __init__(self, groups: NDArray[np.int64], seed: int, batch_size: int) -> None:
        if not len(groups):
            raise EmptyDatasetError("the data source has no samples: check the data directory and split")
        self.seed, self.batch_size = seed, batch_size
        self.members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self.batches = sum(-(-len(rows) // batch_size) for rows in self.members)
        self._epoch, self._order = -1, np.empty((0, batch_size), dtype=np.int64)

    def slots(self, start: int, count: int) -> list[tuple[int, int]]:
        """Returns the pairs (index, epoch) of the batch that begins at position `start`, a multiple of its size
        `count`.

        Raises ValueError unless these positions are one whole batch.
        """
        if count != self.batch_size or start % count:
            raise ValueError(f"slots {start} to {start + count} are no batch of {self.batch_size}")
        epoch, number = divmod(start // count, self.batches)
        if epoch != self._epoch:
            self._order, self._epoch = self._draw(epoch), epoch
        return [(int(row), epoch) for row in self._order[number]]

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        rng, size = np.random.default_rng([self.seed, 2, epoch]), self.batch_size
        batches = [np.resize(rng.permutation(rows), (-(-len(rows) // size), size)) for rows in self.members]
        return rng.permutation(np.concatenate(batches))


def sampler_of(source: MapSource, seed: int, batch_size: int) -> OrderedSampler | GroupedSampler:
    """Returns the sampler of a source: grouped if the source has groups, else ordered."""
    groups = source.groups
    return OrderedSampler(len(source), seed) if groups is None else GroupedSampler(groups, seed, batch_size)


def sample_rng(seed: int, index: int, epoch: int) -> np.random.Generator:
    """Returns the generator of one sample in one epoch."""
    return np.random.default_rng([seed, 1, index, epoch])


def fetch(source: MapSource, slots: Sequence[tuple[int, int]], seed: int) -> dict[str, Any]:
    """Returns the batch of these pairs (index, epoch)."""
    indices = [index for index, _ in slots]
    rngs = [sample_rng(seed, index, epoch) for index, epoch in slots]
    return source.get_batch(indices, rngs)


def stack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks arrays, tensors and numbers field by field; other values become lists."""
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
