"""The base's features are led to a recognizer's: read at the right places, and with a gradient that leads there."""

import numpy as np
import pytest
import torch

from faceclip import weights
from faceclip.data.arrays import load_arrays
from faceclip.errors import ConfigError
from faceclip.faces.align import template
from faceclip.towers.face import FaceViT
from train_generator.towers.alignment import Alignment, portrait_tokens, tokens_in_place
from train_generator.towers.base import BaseConfig


def token_map(grid: int) -> torch.Tensor:
    """Tokens (1, P, 2) that say their own column and row."""
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.stack([columns, rows], dim=-1).reshape(1, grid * grid, 2).float()


def test_tokens_of_a_face_that_fills_the_picture_stay_where_they_are():
    points = torch.from_numpy(template(72))[None]
    targets, seen = tokens_in_place(token_map(8), points, portrait=72, cells=8, crop=72, patch=9)
    torch.testing.assert_close(targets[0].flatten(1).T, token_map(8)[0], atol=1e-4, rtol=0)
    assert seen.all()


def test_tokens_of_a_small_face_lie_where_the_face_is():
    points = torch.from_numpy(template(72))[None] + 36.0  # the same face in the middle of a picture twice as large
    targets, seen = tokens_in_place(token_map(8), points, portrait=144, cells=16, crop=72, patch=9)
    assert seen.sum() == 64 and seen[0, 4:12, 4:12].all()
    torch.testing.assert_close(targets[0, :, 4:12, 4:12].flatten(1).T, token_map(8)[0], atol=1e-4, rtol=0)


def test_only_cells_that_are_seen_count():
    torch.manual_seed(0)
    module = Alignment(6, 4, hidden=8)
    features, seen = torch.randn(2, 6, 4, 4), torch.zeros(2, 4, 4)
    seen[:, :2] = 1
    targets = module.project(features).detach()
    targets[:, :, 2:] *= -1
    assert module(features, targets, seen).item() == pytest.approx(0, abs=1e-6)
    assert module(features, targets, 1 - seen).item() == pytest.approx(2, abs=1e-5)
    assert module(features, targets, 0 * seen).item() == 0


def test_tokens_of_portraits_are_the_recognizers_own_and_cached(tiny_dataset):
    recognizer = FaceViT.from_pretrained(weights.path("tiny/recognizer")).eval()
    arrays = load_arrays(tiny_dataset, "test", size=64)
    tokens = portrait_tokens(arrays, recognizer, "test")
    assert tokens.shape == (len(arrays), 64, 192) and tokens.dtype == np.float16
    assert np.array_equal(tokens, portrait_tokens(arrays, recognizer, "test"))


def test_a_share_of_the_steps_must_be_one():
    with pytest.raises(ConfigError, match=r"^alignment_until: "):
        BaseConfig(alignment_until=1.5)
    with pytest.raises(ConfigError, match=r"^alignment: "):
        BaseConfig(alignment=-1.0)
