"""Short calls of a pipeline, the same for every test that compares pictures."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from makeup_plugin.pipeline import FaceMakeUpPipeline

PLAIN = {"num_inference_steps": 2, "output_type": "np", "watermark": False}


def run(pipeline: FaceMakeUpPipeline, photo: np.ndarray | None, points: np.ndarray | None, **arguments) -> np.ndarray:
    """Two steps from seed 0, as floats."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    landmarks = None if photo is None else points
    return pipeline("a man", photo, landmarks=landmarks, **settings, **arguments).images


def seeded(seed: int = 0) -> torch.Generator:
    """A new generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def group_photo() -> Path:
    """Six faces; comes with insightface's wheel, which is not imported here."""
    return Path(importlib.util.find_spec("insightface").origin).parent / "data" / "images" / "t1.jpg"
