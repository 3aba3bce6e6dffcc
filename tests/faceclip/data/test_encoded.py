"""Pictures that stay encoded: read as arrays are, and damage is named."""

import numpy as np
import pytest

from faceclip.data.encoded import EncodedPictures, encoded_fields
from faceclip.data.writing import encode_map, encode_photo, encode_png
from faceclip.errors import DataError
from faceclip.storage.ragged import RaggedRows, pack
from faceclip.storage.shards import ShardedArray

rng = np.random.default_rng(0)
PICTURES = [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(5)]


def stored(files: list[bytes]) -> EncodedPictures:
    """The pictures in two shards."""
    parts = [encoded_fields("images", part, [], resized=False) for part in (files[:2], files[2:])]
    return EncodedPictures.of({name: ShardedArray([part[name] for part in parts]) for name in parts[0]}, "images")


def test_rows_slices_and_lists_are_read_as_of_an_array():
    found = stored([encode_png(picture)["bytes"] for picture in PICTURES])
    truth = np.stack(PICTURES)
    assert found.shape == truth.shape and found.dtype == truth.dtype and len(found) == 5
    for index in (0, -1, slice(1, 4), slice(0, 0), np.array([4, 1]), np.array([[0], [3]]), truth[:, 0, 0, 0] > 100):
        np.testing.assert_array_equal(found[index], truth[index])
    np.testing.assert_array_equal(np.asarray(found), truth)
    assert len(list(found)) == 5
    with pytest.raises(IndexError):
        found[5]


def test_damage_and_another_size_are_named():
    files = [encode_png(picture)["bytes"] for picture in PICTURES]
    with pytest.raises(DataError, match="images, row 3"):
        stored([*files[:3], files[3][:40], files[4]])[3]
    larger = encode_png(np.zeros((8, 8, 3), np.uint8))["bytes"]
    with pytest.raises(DataError, match=r"images, row 1.*\(8, 8, 3\)"):
        stored([files[0], larger])[1]


def test_kinds_of_files():
    smooth = np.tile(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (1, 32, 3))
    for kind, worst in (("png", 0), ("jpeg", 4), ("webp", 6)):
        read = stored([encode_photo(smooth, kind)["bytes"]] * 3)[2]
        assert np.abs(read.astype(int) - smooth).max() <= worst
    colored = smooth.copy()
    colored[3, 4, 0] ^= 1
    for picture in (smooth, colored):  # without loss, whether grey or not
        np.testing.assert_array_equal(stored([encode_map(picture)["bytes"]] * 3)[0], picture)


def test_ragged_rows_come_back():
    rows = [np.arange(count) for count in (3, 0, 5, 1)]
    shards = [pack("values", rows[:2], np.int64), pack("values", rows[2:], np.int64)]
    found = RaggedRows(shards, "values", np.array([3, 0, 2, 1]))
    assert [found[index].tolist() for index in range(4)] == [[0], [0, 1, 2], [0, 1, 2, 3, 4], []]
