"""Captions match portraits by meaning, and what is true of a portrait is not pushed apart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from faceclip.data.records import Caption, Phrase
from faceclip.towers.text import END
from faceclip.training.towers.crops import JitterConfig
from train_encoder.towers.clip import (
    CaptionedSource,
    caption_matches,
    fullest_caption,
    masked_contrastive_loss,
    recall_among,
)


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


def test_recall_leaves_ambiguous_distractors_out() -> None:
    scores = np.array([[0.5, 0.9, 0.1], [0.0, 1.0, 0.2], [0.7, 0.0, 0.7]])
    nothing = np.zeros((3, 3), dtype=bool)
    assert recall_among(scores, nothing, distractors=2).tolist() == [False, True, False]
    ambiguous = nothing.copy()
    ambiguous[0, 1] = ambiguous[1, 0] = ambiguous[2, 0] = True
    assert recall_among(scores, ambiguous, distractors=1).tolist() == [True, True, True]
    with pytest.raises(ValueError, match="distractors"):
        recall_among(scores, ambiguous, distractors=2)
