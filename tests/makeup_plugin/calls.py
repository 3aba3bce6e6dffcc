"""A short call of a pipeline, the same for every test that compares pictures."""

import numpy as np
import torch

from makeup_plugin.pipeline import FaceMakeUpPipeline


def run(pipeline: FaceMakeUpPipeline, photo: np.ndarray | None, points: np.ndarray | None, **arguments) -> np.ndarray:
    """Two steps from seed 0, as floats."""
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    landmarks = None if photo is None else points
    return pipeline("a man", photo, landmarks=landmarks, **settings, **arguments).images
