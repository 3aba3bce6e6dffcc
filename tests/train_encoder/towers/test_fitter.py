"""The fitter's training targets."""

from pathlib import Path

import numpy as np
import torch

from faceclip.training.towers.crops import JitterConfig
from train_encoder.towers.fitter import FittedSource


def test_fitted_targets_of_small_and_full_portraits_agree(tiny_dataset: Path) -> None:
    # The same jitter seen from a portrait of another size must give the same parameters in the crop's frame.
    source = FittedSource(tiny_dataset, "train", size=64, jitter=JitterConfig())
    sample = source.get(3, np.random.default_rng(0))
    half = source.arrays.size / 2
    small = dict(sample, portrait=int(half))
    # p = 2·p_small + ½, hence M·p = (2A)·p_small + (b + A·½).
    matrix = sample["matrix"].copy()
    small["matrix"] = np.concatenate(
        [matrix[:, :2] * 2, matrix[:, 2:] + matrix[:, :2].sum(axis=1, keepdims=True) / 2], 1
    )
    batch = source.collate([sample, small])
    torch.testing.assert_close(batch["target"][0], batch["target"][1], atol=1e-4, rtol=1e-4)
