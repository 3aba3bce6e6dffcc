"""Exponential moving average of trainable parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ParameterAverage:
    """Keeps exponential moving averages of `parameters` in fp32. The decay is min(`decay`, (1 + step)/(10 + step)).

    Raises ValueError unless `decay` is in [0, 1).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.parameters = dict(parameters)
        self.averages = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the averages towards the parameters after optimizer step number `step` (from 1)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        targets = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.averages.values()), targets, weight)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context in which the parameters have the values of their averages."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._assign(self.averages)
        try:
            yield
        finally:
            self._assign(kept)

    def state(self) -> dict[str, Tensor]:
        """Returns the averages by parameter name."""
        return self.averages

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restores saved averages."""
        for name, average in self.averages.items():
            average.copy_(state[name])

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
