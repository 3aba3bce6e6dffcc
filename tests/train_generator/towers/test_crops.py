"""Windows of portraits: where they are cut, how they are put back, and what mirroring does to the points."""

from pathlib import Path

import numpy as np
import pytest
import torch

from faceclip.errors import ConfigError
from train_generator.towers.crops import cut, draw_corners, mirror_points, put_back
from train_generator.towers.vae import VaeConfig, WeightedSource


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_windows_lie_anywhere_in_the_picture_and_go_back_where_they_were():
    pictures = np.random.default_rng(0).integers(0, 256, (64, 12, 12, 3), dtype=np.uint8)
    corners = draw_corners(generators(64), 12, 8)
    assert corners.min() == 0 and corners.max() == 4 and len(np.unique(corners, axis=0)) > 15
    windows = cut(pictures, corners, 8)
    x, y = corners[5]
    np.testing.assert_array_equal(windows[5], pictures[5, y : y + 8, x : x + 8])
    true = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    parts = torch.from_numpy(windows).permute(0, 3, 1, 2).float().requires_grad_()
    torch.testing.assert_close(put_back(true, parts, torch.from_numpy(corners)), true)
    whole = put_back(true, parts + 1, torch.from_numpy(corners))
    assert (whole - true).sum().item() == pytest.approx(64 * 3 * 8 * 8)
    whole.sum().backward()
    assert (parts.grad == 1).all()


def test_points_of_a_mirrored_face_keep_their_order():
    points = np.array([[10, 5], [20, 6], [15, 10], [11, 15], [19, 16]], np.float32)
    mirrored = mirror_points(points, 32)
    np.testing.assert_array_equal(mirrored, [[11, 6], [21, 5], [16, 10], [12, 16], [20, 15]])
    np.testing.assert_array_equal(mirror_points(mirrored, 32), points)


def test_a_source_of_windows_gives_the_portrait_and_the_points_that_belong_to_them(tiny_dataset: Path):
    source = WeightedSource(tiny_dataset, "train", size=32, weights={"lips": 9}, window=16, faces=True)
    rows = [0, 3, 5, 9] * 4
    batch = source.get_batch(rows, generators(16))
    assert batch["image"].shape == (16, 3, 16, 16) and batch["weights"].shape == (16, 1, 16, 16)
    mirrored = 0
    for place, row in enumerate(rows):
        x, y = batch["corner"][place].tolist()
        whole = batch["portrait"][place]
        torch.testing.assert_close(batch["image"][place], whole[:, y : y + 16, x : x + 16])
        flipped = not np.array_equal(whole.numpy(), source.arrays.images[row].transpose(2, 0, 1))
        points = source.arrays.landmarks_5[row]
        expected = mirror_points(points, 32) if flipped else points
        np.testing.assert_array_equal(batch["landmarks"][place].numpy(), expected)
        mirrored += flipped
    assert 0 < mirrored < 16


def test_whole_portraits_are_what_they_were_without_windows(tiny_dataset: Path):
    plain = WeightedSource(tiny_dataset, "train", size=32).get_batch([1, 2], generators(2))
    faces = WeightedSource(tiny_dataset, "train", size=32, faces=True).get_batch([1, 2], generators(2))
    assert set(plain) == {"image", "weights"}
    for name in plain:
        assert torch.equal(plain[name], faces[name])
    assert torch.equal(faces["portrait"], faces["image"]) and not faces["corner"].any()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"window": 10}, "window"),
        ({"window": 128}, "window"),
        ({"window": -8}, "window"),
        ({"tokens": -1.0}, "tokens"),
        ({"identity": -0.1}, "identity"),
    ],
)
def test_settings_that_cannot_be(values, key):
    VaeConfig(window=64)
    with pytest.raises(ConfigError, match=f"^{key}: "):
        VaeConfig(**{"size": 64, **values})
