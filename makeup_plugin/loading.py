"""A pipeline as commands, the page and the nodes load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from faceclip.errors import ConfigError

if TYPE_CHECKING:
    from makeup_plugin.pipeline import FaceMakeUpPipeline

DType = Literal["float32", "bfloat16", "float16"]


def load_pipeline(
    model: str | Path = "tiny", *, device: str = "auto", dtype: DType = "float32", progress: bool = True
) -> FaceMakeUpPipeline:
    """The pipeline that `model` names, on its device.

    Args:
        model: a directory, a hub id, or "tiny".
        device: as in torch; "auto" is the GPU where there is one.
        dtype: of all weights.
        progress: whether its calls show a bar.

    Raises:
        ConfigError: there is no such device.
        CheckpointError: there is no such pipeline, or it is damaged.
    """
    from makeup_plugin.pipeline import FaceMakeUpPipeline

    place = named_device(device)
    pipeline = FaceMakeUpPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(place)
    if not progress:
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
