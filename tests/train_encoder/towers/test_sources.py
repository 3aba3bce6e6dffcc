"""Tower samples are functions of their generator, jitter of nothing changes nothing, captions match by
meaning.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from faceclip.data.records import Caption, Phrase
from faceclip.towers.text import END
from faceclip.training.sampler import sample_rng
from train_encoder.towers.clip import (
    CaptionedSource,
    caption_matches,
    fullest_caption,
    masked_contrastive_loss,
)
from train_encoder.towers.fitter import FittedSource
from train_encoder.towers.judge import PortraitSource
from train_encoder.towers.sources import CropSource, JitterConfig, aligned_crops, jitter_image

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


def test_hair_color_of_a_bald_head_is_ignored(tiny_dataset: Path) -> None:
    source = PortraitSource(tiny_dataset, "train", size=64, attributes=["hair_color", "hat"], jitter=JitterConfig())
    bald = source.arrays.attribute_values("hair_length") == "bald"
    assert bald.any() and not bald.all()
    assert (source.labels["hair_color"][bald] == -100).all() and (source.labels["hair_color"][~bald] >= 0).all()
    sample = source.get(0, np.random.default_rng(0))
    assert np.abs(sample["landmarks"]).max() < 1


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


def test_captioned_samples(tiny_dataset: Path) -> None:
    source = CaptionedSource(tiny_dataset, "train", size=64, jitter=JitterConfig(), template=1.0, unknown=0.5)
    assert source.unknown_id not in source.vocabulary
    sample = source.get(1, np.random.default_rng(0))
    end = int(np.flatnonzero(sample["tokens"] == END)[0])
    words = sample["tokens"][1:end]
    assert 0 < (words == source.unknown_id).mean() < 1
    assert np.isin(words[words != source.unknown_id], source.vocabulary).all()
    assert sample["named"].any() and sample["classes"].shape == (len(source.names),)


def test_caption_matches_by_meaning() -> None:
    named = torch.tensor([[True, False], [True, True], [False, False]])
    classes = torch.tensor([[1, 0], [1, 2], [3, 0]])
    expected = [[True, True, False], [False, True, False], [True, True, True]]
    assert caption_matches(named, classes).tolist() == expected


def test_masked_pairs_are_neither_pulled_nor_pushed() -> None:
    images, texts = torch.eye(3), torch.eye(3)
    matches = torch.eye(3, dtype=torch.bool)
    matches[0, 1] = True
    scale = torch.tensor(2.0)
    # Row softmax of [2, 0, 0]; row 0 and column 1 lose one negative.
    full, less = np.log(1 + 2 * np.exp(-2)), np.log(1 + np.exp(-2))
    expected = (2 * full + less) / 3
    assert masked_contrastive_loss(images, texts, scale, matches).item() == pytest.approx(expected, abs=1e-6)


def test_fullest_caption() -> None:
    def caption(*names: str) -> Caption:
        return Caption(
            text=" ".join(names),
            kind="attributes",
            phrases=(Phrase(text="", start=0, end=0, region="hair", attributes=names),),
        )

    captions = [caption("hat"), caption("hat", "beard"), caption("hat", "glasses")]
    assert fullest_caption(captions) is captions[1]
