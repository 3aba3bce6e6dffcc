"""Kept rows: built once, resumed after an interruption, verified on reading."""

import resource
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.numpy import load_file

from faceclip.data.blocks import ROWS, kept_rows
from faceclip.errors import DataError

COUNT = 2 * ROWS + 10


class Counting:
    """A builder that notes which rows it was asked for and can fail after some calls."""

    def __init__(self, fail_after: int = 10**9) -> None:
        self.calls: list[tuple[int, int]] = []
        self.fail_after = fail_after

    def __call__(self, start: int, stop: int) -> dict[str, np.ndarray]:
        if len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        self.calls.append((start, stop))
        rows = np.arange(start, stop, dtype=np.float32)
        return {"square": rows**2, "pair": np.stack([rows, -rows], 1).astype(np.float16)}


def read(tmp_path, build, **changes):
    facts = {"data": "d", "model": "m", "preprocessing": "p"}
    return kept_rows(tmp_path, "test", facts | changes, COUNT, build)


def test_built_once_and_equal(tmp_path):
    first = Counting()
    values = read(tmp_path, first)
    assert first.calls == [(0, ROWS), (ROWS, 2 * ROWS), (2 * ROWS, COUNT)]
    np.testing.assert_array_equal(values["square"], np.arange(COUNT, dtype=np.float32) ** 2)
    assert values["pair"].shape == (COUNT, 2)
    assert values["pair"].dtype == np.float16
    second = Counting()
    np.testing.assert_array_equal(read(tmp_path, second)["square"], values["square"])
    assert second.calls == []


def test_an_interrupted_build_resumes_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, Counting(fail_after=2))
    rest = Counting()
    values = read(tmp_path, rest)
    assert rest.calls == [(2 * ROWS, COUNT)]
    np.testing.assert_array_equal(values["square"], np.arange(COUNT, dtype=np.float32) ** 2)


@pytest.mark.parametrize("key", ["data", "model", "preprocessing"])
def test_every_part_of_the_key_counts(tmp_path, key):
    read(tmp_path, Counting())
    other = Counting()
    read(tmp_path, other, **{key: "other"})
    assert len(other.calls) == 3


def test_files_are_safetensors(tmp_path):
    values = read(tmp_path, Counting())
    paths = sorted(tmp_path.glob("test-*/*.safetensors"))
    stored = [load_file(path) for path in paths]
    for field in ("square", "pair"):
        np.testing.assert_array_equal(np.concatenate([part[field] for part in stored]), values[field])


def test_a_changed_shard_is_found_where_hashes_are_compared(tmp_path):
    read(tmp_path, Counting())
    path = next(tmp_path.glob("test-*/00002.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"/00002\.safetensors .*SHA-256"):
        read(tmp_path, Counting())
    facts = {"data": "d", "model": "m", "preprocessing": "p"}
    kept_rows(tmp_path, "test", facts, COUNT, Counting(), hashes=False)
    path.write_bytes(bytes(data[:-100]))
    with pytest.raises(DataError, match=r"/00002\.safetensors .*\b116\b.*\b216\b"):
        kept_rows(tmp_path, "test", facts, COUNT, Counting(), hashes=False)


def test_blocks_of_another_size_are_other_shards(tmp_path):
    facts, build = {"data": "d"}, Counting()
    kept_rows(tmp_path, "test", facts, 10, build, rows=4)
    kept_rows(tmp_path, "test", facts, 10, build, rows=5)
    kept_rows(tmp_path, "test", facts, 9, build, rows=5)
    assert build.calls == [(0, 4), (4, 8), (8, 10), (0, 5), (5, 10), (0, 5), (5, 9)]


def test_the_context_is_entered_only_to_build(tmp_path):
    entered = []

    @contextmanager
    def around():
        entered.append(1)
        yield
        entered.append(2)

    for _ in range(2):
        kept_rows(tmp_path, "test", {}, COUNT, Counting(), around=around)
    assert entered == [1, 2]


def test_a_full_disk_is_named_and_the_build_resumes(tmp_path):
    whole = {field: np.array(values) for field, values in read(tmp_path / "whole", Counting()).items()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(DataError, match=rf"{tmp_path / 'small'}.*Errno 27"):
            read(tmp_path / "small", Counting())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    values = read(tmp_path / "small", Counting())
    for field, expected in whole.items():
        np.testing.assert_array_equal(values[field], expected)


def test_a_builder_that_changes_its_shapes_is_refused(tmp_path):
    def build(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"x": np.zeros((stop - start, 2 + (start > 0)), np.float32)}

    with pytest.raises(DataError, match=r"00001\.safetensors: x .*\(3,\).*\(2,\)"):
        read(tmp_path, build)
