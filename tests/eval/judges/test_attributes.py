"""What the judge learns from."""

from pathlib import Path

import numpy as np

from eval.judges.attributes import LabelledSource
from faceclip.training.towers.crops import JitterConfig


def test_hair_color_of_a_bald_head_is_ignored(tiny_dataset: Path) -> None:
    source = LabelledSource(tiny_dataset, "train", size=64, attributes=["hair_color", "hat"], jitter=JitterConfig())
    bald = source.arrays.attribute_values("hair_length") == "bald"
    assert bald.any() and not bald.all()
    assert (source.labels["hair_color"][bald] == -100).all() and (source.labels["hair_color"][~bald] >= 0).all()
    sample = source.get(0, np.random.default_rng(0))
    assert np.abs(sample["landmarks"]).max() < 1
