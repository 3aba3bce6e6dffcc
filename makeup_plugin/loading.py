"""A pipeline as the command, the page and the nodes load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from faceclip.errors import ConfigError

if TYPE_CHECKING:
    from makeup_plugin.pipeline import FaceMakeUpPipeline

DType = Literal["float32", "bfloat16", "float16"]


def load_pipeline(model: str | Path = "tiny", *, device: str = "auto", dtype: DType = "float32") -> FaceMakeUpPipeline:
    """The pipeline that `model` names, on its device.

    Args:
        model: a directory, a hub id, or "tiny".
        device: as in torch; "auto" is the GPU where there is one.
        dtype: of all weights.

    Raises:
        ConfigError: there is no such device.
        CheckpointError: there is no such pipeline, or it is damaged.
    """
    from makeup_plugin.pipeline import FaceMakeUpPipeline

    place = named_device(device)
    return FaceMakeUpPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(place)


def named_device(device: str) -> torch.device:
    """The device of that name. Raises ConfigError where torch cannot use it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    # torch says by all of these that a device is unknown, not compiled in, or not there.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}): give cpu") from error
    if place.type == "meta":
        raise ConfigError("device 'meta' computes nothing: give cpu")
    return place
