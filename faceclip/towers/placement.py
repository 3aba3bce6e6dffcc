"""Where frozen towers lie while their features are computed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from faceclip.errors import ConfigError


def accelerator() -> torch.device:
    """The CUDA device of this process, of a launcher's ranks each its own; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def named_device(device: str) -> torch.device:
    """The device that `data.device` names; "cuda" is this process' own GPU under a launcher.

    Raises ConfigError if there is no such device.
    """
    rank = os.environ.get("LOCAL_RANK")
    try:
        found = torch.device(f"cuda:{rank}" if device == "cuda" and rank else device)
        if found.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"data.device={device}: PyTorch finds no CUDA device here; set data.device=cpu")
        if found.type == "meta":
            raise ConfigError(f"data.device={device}: this device computes nothing; cpu or cuda, for instance")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"data.device={device}: no such device; cpu or cuda, for instance") from error
    return found


@contextmanager
def lying_on(place: torch.device, *parts: nn.Module) -> Iterator[None]:
    """Context in which the modules lie on the device; afterwards they lie on the CPU, and the device's memory is free
    again for training."""
    try:
        for part in parts:
            part.to(place)
        yield
    finally:
        for part in parts:
            part.to("cpu")
        if place.type == "cuda":
            torch.cuda.empty_cache()
