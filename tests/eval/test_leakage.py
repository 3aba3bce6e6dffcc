"""Leaks that are put in by hand are found, independent data show none."""

from dataclasses import replace

import numpy as np
import pytest

from eval.leakage import attribute_agreement, cut, main, measure, nearest_person, thumbnails
from faceclip.data.arrays import load_arrays
from faceclip.data.records import REGIONS
from faceclip.errors import EmptyDatasetError
from tests.full_disk import largest_file


def test_agreement_by_hand():
    # Person 1 has values 0, 0; person 2 has 0, 1. Within: 1 and 0. Between: 8 ordered pairs, 4 agree.
    agreement = attribute_agreement(np.array([0, 0, 0, 1]), np.array([1, 1, 2, 2]))
    assert agreement.same.value == 0.5
    assert agreement.different == pytest.approx(0.5)
    assert agreement.excess.value == pytest.approx(0)


def test_an_attribute_bound_to_the_person_is_found():
    identity = np.repeat(np.arange(50), 4)
    bound = attribute_agreement(identity % 3, identity)
    assert bound.same.value == 1 and bound.excess.low > 0.5
    free = attribute_agreement(np.random.default_rng(0).integers(0, 3, 200), identity)
    assert free.excess.low < 0 < free.excess.high


def test_skipped_portraits_do_not_count():
    values, identity = np.array([0, 0, 1, 0, 0, 1]), np.array([1, 1, 1, 2, 2, 2])
    frontal = np.array([False, False, True, False, False, True])
    assert attribute_agreement(values, identity, skip=frontal).same.value == 1


def test_cut_leaves_only_the_named_regions():
    images = np.full((1, 2, 2, 3), 9, dtype=np.uint8)
    regions = np.array([[[REGIONS.index("hair"), REGIONS.index("skin")], [0, 0]]], dtype=np.uint8)
    left = cut(images, regions, ("hair",))
    assert (left[0, 0, 0] == 9).all() and (left[0, 0, 1] == 127).all() and (left[0, 1] == 127).all()


def test_nearest_person_by_hand():
    pictures = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    pictures[:2, :16] = 255  # two people whose pictures differ in which half is white
    pictures[2:, 16:] = 255
    found, chance = nearest_person(thumbnails(pictures), np.array([1, 1, 2, 2]))
    assert found.value == 1 and chance == pytest.approx(1 / 3)
    found, _ = nearest_person(thumbnails(pictures), np.array([1, 2, 1, 2]))
    assert found.value == 0


def test_blocks_of_rows_give_what_all_rows_give(monkeypatch):
    rng = np.random.default_rng(0)
    features, identity = rng.normal(size=(20, 6)).astype(np.float32), rng.integers(0, 5, 20)
    whole = nearest_person(features, identity)
    monkeypatch.setattr("eval.leakage.ROWS", 7)
    assert nearest_person(features, identity) == whole and 0 < whole[0].value < 1


def test_leakage_needs_two_persons_and_two_portraits_of_one(tiny_dataset):
    arrays = load_arrays(tiny_dataset, "test")
    for identity in (np.zeros(len(arrays), dtype=int), np.arange(len(arrays))):
        with pytest.raises(EmptyDatasetError, match=r"--split .*--data"):
            measure(replace(arrays, identity=identity))


def test_command(tiny_dataset, tmp_path, capsys):
    assert main(["--data", str(tiny_dataset), "--out", str(tmp_path), "--split", "train"]) == 0
    assert "only what a person can change" in capsys.readouterr().out
    assert (tmp_path / "results.json").is_file() and (tmp_path / "report.html").is_file()
    with largest_file(100):
        assert main(["--data", str(tiny_dataset), "--out", str(tmp_path)]) == 2
    assert "free space" in capsys.readouterr().err
