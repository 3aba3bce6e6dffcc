"""Copies of training portraits are found, and other pictures are none."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from eval.arms.neighbors import main, nearest
from faceclip.data.arrays import load_arrays


def test_the_nearest_by_hand():
    portraits = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    found = nearest(np.array([[2.0, 0.1], [-0.1, -3.0]]), portraits)
    np.testing.assert_array_equal(found.row, [0, 3])
    np.testing.assert_allclose(found.distance, 1 - np.array([2, 3]) / np.hypot([2, 0.1], [0.1, 3]), atol=1e-12)


def test_a_copied_portrait_is_nearer_than_any_real_one(tiny_dataset: Path, tmp_path: Path, capsys) -> None:
    arrays = load_arrays(tiny_dataset, "train", size=64)
    for number, row in enumerate((3, 17, 30)):
        Image.fromarray(np.asarray(arrays.images[row])).save(tmp_path / f"{number}.png")
    words = ["--images", str(tmp_path), "--data", str(tiny_dataset), "--out", str(tmp_path / "out"), "--size", "64"]
    assert main(words) == 0
    figures = json.loads((tmp_path / "out" / "neighbors.json").read_text())
    assert figures["distance to the nearest training portrait, pictures"]["value"] < 1e-5
    assert figures["distance to the nearest training portrait, real"]["value"] > 0.01
    assert figures["nearer than 95 % of real portraits, pictures"]["value"] == 1
    with Image.open(tmp_path / "out" / "neighbors.png") as sheet:
        assert sheet.height > 2 * 128
    assert main([*words, "--count", "1"]) == 2 and "--count" in capsys.readouterr().err
    (tmp_path / "0.png").write_bytes(b"no picture")
    assert main(words) == 2 and "0.png" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["--images", str(empty), *words[2:]]) == 2 and "--images" in capsys.readouterr().err
