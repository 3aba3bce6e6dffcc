"""Where frozen towers lie while their features are computed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from faceclip.errors import ConfigError


def accelerator() -> torch.device:
    """Returns the CUDA device of this process, of a launcher's ranks each its own; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def named_device(device: str, key: str = "data.device") -> torch.device:
    """Returns the device of that name; "cuda" is this process' own GPU under a launcher.

    Raises ConfigError, which names the `key`, if it cannot be used.
    """
    rank = os.environ.get("LOCAL_RANK")
    try:
        found = torch.device(f"cuda:{rank}" if device == "cuda" and rank else device)
        if found.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"{key}={device}: PyTorch finds no CUDA device here; set {key}=cpu")
        if found.type == "meta":
            raise ConfigError(f"{key}={device}: this device computes nothing; cpu or cuda, for instance")
        torch.empty(0, device=found)
    # torch says by all of these that a device is unknown, not compiled in, or not there.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"{key}={device}: cannot be used ({reason}); cpu or cuda, for instance") from error
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
