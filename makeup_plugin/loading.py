"""A pipeline as commands, the page and the nodes load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from faceclip.towers.placement import accelerator, named_device

if TYPE_CHECKING:
    from makeup_plugin.pipeline import FaceMakeUpPipeline

DType = Literal["float32", "bfloat16", "float16"]


def load_pipeline(
    model: str | Path = "tiny",
    *,
    device: str = "auto",
    dtype: DType = "float32",
    progress: bool = True,
    key: str = "device",
) -> FaceMakeUpPipeline:
    """The pipeline that `model` names, on its device.

    Args:
        model: a directory, a hub id, or "tiny".
        device: as in torch; "auto" is the GPU where there is one.
        dtype: of all weights.
        progress: whether its calls show a bar.
        key: names the device in errors, as `--device`.

    Raises:
        ConfigError: the device cannot be used.
        CheckpointError: there is no such pipeline, or it is damaged.
    """
    from makeup_plugin.pipeline import FaceMakeUpPipeline

    place = accelerator() if device == "auto" else named_device(device, key)
    pipeline = FaceMakeUpPipeline.from_pretrained(model, dtype=getattr(torch, dtype)).to(place)
    if not progress:
        pipeline.set_progress_bar_config(disable=True)
    return pipeline
