"""SIGTERM as a wish to stop after the current step, on which all processes agree."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Context in which SIGTERM is such a request; outside the main thread signals are left alone."""

        def ask(*_: Any) -> None:
            self.asked = True

        try:
            previous = signal.signal(signal.SIGTERM, ask)
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked; all must call it."""
        if accelerator.num_processes == 1:
            return self.asked
        flag = torch.tensor(float(self.asked), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum").item())
