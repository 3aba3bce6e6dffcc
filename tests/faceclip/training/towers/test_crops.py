"""Crops are functions of their generator; jitter of size zero changes nothing."""

from pathlib import Path

import numpy as np

from faceclip.training.sampler import sample_rng
from faceclip.training.towers.crops import CropSource, JitterConfig, aligned_crops, jitter_image

JITTER = JitterConfig(landmarks=0.01, gain=0.1, contrast=0.1, color=0.03, blur=0.6, noise=3.0)


def test_no_jitter_leaves_the_image_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(jitter_image(image, np.random.default_rng(1), JitterConfig()), image)


def test_gain_scales_grey_levels() -> None:
    image = np.full((4, 4, 3), 100, np.uint8)
    values = {int(jitter_image(image, np.random.default_rng(s), JitterConfig(gain=0.2))[0, 0, 0]) for s in range(50)}
    assert min(values) >= 80 and max(values) <= 120 and len(values) > 20


def test_crops_follow_the_generator_and_know_their_identity(tiny_dataset: Path) -> None:
    source = CropSource(tiny_dataset, "train", size=36, jitter=JITTER)
    assert source.classes == 8 and len(source) == 32
    assert np.unique(source.labels).tolist() == list(range(8))
    first, again, other = (source.get(5, sample_rng(0, 5, epoch)) for epoch in (0, 0, 1))
    assert np.array_equal(first["crop"], again["crop"]) and not np.array_equal(first["crop"], other["crop"])
    assert first["crop"].shape == (3, 36, 36) and first["label"] == source.labels[5]


def test_crops_without_jitter_are_the_aligned_ones(tiny_dataset: Path) -> None:
    source = CropSource(tiny_dataset, "train", size=36, jitter=JitterConfig())
    aligned = aligned_crops(source.arrays, 36, count=3)
    crop = source.get(2, np.random.default_rng(0))["crop"].transpose(1, 2, 0)
    assert np.array_equal(crop, aligned[2])
