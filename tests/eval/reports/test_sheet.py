"""Sheets of pictures: where tiles, gaps and labels lie."""

import numpy as np
import pytest
from PIL import Image

from eval.reports.sheet import GAP, TOP, save_sheet, wrap
from faceclip.errors import DataError
from makeup_plugin.marking.provenance import hash_prompt, read_provenance, sheet_record
from tests.full_disk import largest_file


def test_tiles_stand_where_their_column_and_row_are(tmp_path):
    red, blue = (np.full((4, 4, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    save_sheet(tmp_path / "sheet.png", [[red, None], [None, blue]], ["a", "b"], pixels=32)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (GAP + 2 * (32 + GAP), TOP + 2 * (32 + GAP) + GAP)
    middle = GAP + 16, TOP + 16
    step = 32 + GAP
    assert sheet.getpixel(middle) == (255, 0, 0)
    assert sheet.getpixel((middle[0] + step, middle[1] + step)) == (0, 0, 255)
    assert sheet.getpixel((middle[0] + step, middle[1])) == sheet.getpixel((middle[0], middle[1] + step)) == (255,) * 3


def test_a_sheet_of_generated_pictures_says_so(tmp_path):
    tile = np.zeros((4, 4, 3), np.uint8)
    save_sheet(tmp_path / "sheet.png", [[tile]], ["a"], provenance=sheet_record(model="runs/mine", prompts=["a man"]))
    record = read_provenance(tmp_path / "sheet.png")
    assert record["ai_generated"] and record["model"] == "runs/mine" and record["watermark"] is None
    assert record["prompt_sha256"] == hash_prompt("a man") and record["prompt"] is None
    save_sheet(tmp_path / "plain.png", [[tile]], ["a"])
    assert read_provenance(tmp_path / "plain.png") is None


def test_a_sheet_that_does_not_fit_on_the_disk_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "sheet.png"
    save_sheet(path, [[np.zeros((4, 4, 3), np.uint8)]], ["a"], pixels=16)
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with largest_file(6000), pytest.raises(DataError, match=r"/sheet\.png .*Errno 27"):
        save_sheet(path, [[noise]], ["a"], pixels=64)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_labels_of_rows_stand_before_the_first_tile(tmp_path):
    red = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    save_sheet(tmp_path / "sheet.png", [[red]], ["a"], row_labels=["some words"], pixels=64)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == (64 + 2 * GAP) + 64 + GAP
    label = sheet[TOP : TOP + 64, GAP : GAP + 64]
    assert (label != 255).any() and (sheet[TOP + 32, 64 + 2 * GAP + 32] == (255, 0, 0)).all()


def test_lines_are_broken_between_words():
    assert wrap("a smiling person with hair", 9) == "a smiling\nperson\nwith hair"
    assert wrap("incomprehensible yes", 5) == "incomprehensible\nyes"
