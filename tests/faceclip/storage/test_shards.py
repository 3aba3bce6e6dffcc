"""Shards: written in order, resumed, verified on reading, joined without copying."""

import hashlib
import json
import os
import resource

import numpy as np
import pytest
from safetensors.numpy import load_file

from faceclip.errors import DataError
from faceclip.storage.hashes import short_key
from faceclip.storage.shards import ShardedArray, ShardFolder


def fill(folder, count=3, rows=4):
    shards = ShardFolder(folder, {"why": "test"})
    for number in range(len(shards), count):
        values = np.arange(number * rows, (number + 1) * rows)
        shards.append({"a": values.astype(np.float32)[:, None] * [1, 10], "b": values, "c": values.astype(np.uint8)})
    shards.finish()
    return shards


def test_written_read_and_plain_safetensors(tmp_path):
    fill(tmp_path / "s")
    found = ShardFolder(tmp_path / "s", {})
    assert found.complete
    arrays = found.open()
    assert arrays["a"].shape == (12, 2)
    np.testing.assert_array_equal(arrays["b"][:], np.arange(12))
    np.testing.assert_array_equal(load_file(found.path(1))["b"], [4, 5, 6, 7])


def test_a_stopped_build_resumes_with_the_same_bytes(tmp_path):
    fill(tmp_path / "whole")
    part = ShardFolder(tmp_path / "part", {"why": "test"})
    part.append(ShardFolder(tmp_path / "whole", {}).read(0))
    # A kill after the second shard was renamed and before the manifest listed it, and one while writing the third.
    (tmp_path / "part" / "00001.safetensors").write_bytes(b"written but not listed")
    (tmp_path / "part" / ".00002.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "part" / ".manifest.json.tmp").write_bytes(b"half")
    fill(tmp_path / "part")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "part").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()


def test_shards_that_are_cut_off_are_written_again(tmp_path):
    shards = fill(tmp_path / "s")
    data = [shards.path(number).read_bytes() for number in range(3)]
    shards.read(2)
    shards.cut(3)
    assert shards.complete
    shards.cut(1)
    again = ShardFolder(tmp_path / "s", {})
    assert (len(shards), shards.complete, len(again), again.complete) == (1, False, 1, False)
    fill(tmp_path / "s")
    assert [again.path(number).read_bytes() for number in range(3)] == data


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_damage_is_found_and_named(tmp_path, damage):
    path = fill(tmp_path / "s").path(1)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-3])
    elif damage == "missing":
        path.unlink()
    else:
        path = tmp_path / "s" / "manifest.json"
        path.write_text("{")
    with pytest.raises(DataError, match=rf"/{path.name} ") as caught:
        ShardFolder(tmp_path / "s", {}).open()
    assert str(tmp_path / "s") in str(caught.value)


def test_sizes_alone_are_checked_on_request(tmp_path):
    path = fill(tmp_path / "s").path(1)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert ShardFolder(tmp_path / "s", {}).open(hashes=False)["b"].shape == (12,)
    path.write_bytes(data[:-3])
    with pytest.raises(DataError, match=r"/00001\.safetensors .*\b273\b.*\b276\b"):
        ShardFolder(tmp_path / "s", {}).open(hashes=False)


def test_joined_array_indexes_like_numpy():
    whole = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    joined = ShardedArray([whole[:4], whole[4:4], whole[4:9], whole[9:]])
    for index in (0, -1, 7, slice(2, 9, 3), np.array([9, 0, 4, 4]), np.array([[1, 9], [5, 3]]), np.array([], int)):
        np.testing.assert_array_equal(joined[index], whole[index])
    np.testing.assert_array_equal(np.asarray(joined), whole)
    rows = np.array([8, 1, 3])
    np.testing.assert_array_equal(joined.take(rows)[np.array([2, 0])], whole[[3, 8]])
    np.testing.assert_array_equal(joined.take(rows).take(np.array([1]))[:], whole[[1]])
    with pytest.raises(IndexError, match="-11 of 10"):
        joined[[3, -11]]
    for index in (10, [3, 10]):
        with pytest.raises(IndexError, match="row 10 of 10"):
            joined[index]
    with pytest.raises(IndexError):
        joined[-11]


def test_a_mask_chooses_rows():
    joined = ShardedArray([np.arange(4), np.arange(4, 6)])
    assert joined[np.array([True, False, False, True, True, False])].tolist() == [0, 3, 4]
    with pytest.raises(IndexError, match=r"\(3,\).* 6 rows"):
        joined[np.array([True, False, True])]


def test_keys_depend_on_every_part():
    assert short_key("a", "b") == short_key("a", "b")
    assert len({short_key("a", "b"), short_key("ab", ""), short_key("a", "b", ""), short_key("b", "a")}) == 4


def test_more_shards_than_the_usual_limit_of_open_files(tmp_path):
    shards = fill(tmp_path / "s", count=40, rows=1)
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    limit = next(number for number in range(most) if number - sum(one < number for one in used) == 20)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
        np.testing.assert_array_equal(shards.open()["b"][:], np.arange(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


def test_a_shard_written_after_a_cut_is_read_anew(tmp_path):
    """What was mapped before the cut is the old file."""
    shards = ShardFolder(tmp_path / "s", {})
    for number in range(3):
        shards.append({"b": np.arange(4 * number, 4 * number + 4)})
    assert shards.read(2)["b"].tolist() == [8, 9, 10, 11] and shards.read(1)["b"].tolist() == [4, 5, 6, 7]
    kept = shards.read(0)["b"]
    shards.cut(1)
    shards.append({"b": np.array([70, 71])})
    assert shards.read(1)["b"].tolist() == [70, 71]
    shards.append({"b": np.array([80])})
    assert shards.read(2)["b"].tolist() == [80] and shards.read(0)["b"] is kept
    assert shards.open()["b"][:].tolist() == [0, 1, 2, 3, 70, 71, 80]


def test_the_manifest_holds_sizes_hashes_and_facts(tmp_path):
    shards = ShardFolder(tmp_path / "s", {"why": "test"})
    shards.append({"a": np.arange(3)}, rows=3, first=[1, 2])
    stored = json.loads((tmp_path / "s" / "manifest.json").read_text())
    data = shards.path(0).read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "rows": 3, "first": [1, 2]}
    assert stored == {"about": {"why": "test"}, "complete": False, "shards": [entry]}
    assert shards.path(0).name == "00000.safetensors" and shards.path(12).name == "00012.safetensors"
    shards.finish()
    assert json.loads((tmp_path / "s" / "manifest.json").read_text())["complete"] is True


def test_every_kind_of_number_is_mapped_as_it_was_written(tmp_path):
    kinds = [np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, bool]
    fields = {np.dtype(kind).name: (np.arange(6).reshape(2, 3) % 2).astype(kind) for kind in kinds}
    shards = ShardFolder(tmp_path / "s", {})
    shards.append(fields)
    found = ShardFolder(tmp_path / "s", {}).open()
    assert found.keys() == fields.keys()
    for name, values in fields.items():
        assert found[name].dtype == values.dtype and np.array_equal(found[name][:], values)
        assert not shards.read(0)[name].flags.writeable
    assert ShardFolder(tmp_path / "none", {}).open() == {}


def test_keys_are_those_of_earlier_releases():
    assert short_key("a", 1, None) == "10a6fdc588767bdba2da"


def test_shards_of_other_fields_are_refused(tmp_path):
    shards = ShardFolder(tmp_path / "s", {})
    shards.append({"a": np.zeros((2, 3), np.float32)})
    shards.append({"a": np.zeros((5, 3), np.float32)})
    for fields, words in (
        ({"a": np.zeros((2, 4), np.float32)}, r"a .*\(4,\).*\(3,\)"),
        ({"a": np.zeros((2, 3))}, "a .*float64.*float32"),
        ({}, "a .*nothing"),
        ({"a": np.zeros((2, 3), np.float32), "b": np.zeros(2)}, "b .*nothing$"),
    ):
        with pytest.raises(DataError, match=rf"/00002\.safetensors: {words}"):
            shards.append(fields)
    assert len(shards) == 2 and not shards.path(2).exists()


def test_joined_rows_are_iterated_and_converted():
    joined = ShardedArray([np.arange(2, dtype=np.int32), np.arange(2, 5, dtype=np.int32)])
    assert [int(row) for row in joined] == [0, 1, 2, 3, 4] and joined.dtype == np.int32
    assert np.asarray(joined).dtype == np.int32
    assert np.asarray(joined, dtype=np.float32).dtype == np.float32
    assert joined.take(np.array([4])).shape == (1,) and len(joined.take(np.array([4, 0]))) == 2


def test_a_shard_that_cannot_be_mapped_is_named(tmp_path):
    shards = fill(tmp_path / "s")
    shards.path(1).unlink()
    with pytest.raises(DataError, match=r"/00001\.safetensors cannot .*readable"):
        ShardFolder(tmp_path / "s", {}).read(1)
