"""Cached features: built once, resumed after an interruption, verified on reading."""

import resource

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from faceclip.errors import DataError
from faceclip.storage.cache import CHUNK, cached_features
from faceclip.storage.hashes import module_hash
from faceclip.towers.image import ImageTower

COUNT = 2 * CHUNK + 10


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
    key = {"data_hash": "d", "model_hash": "m", "preprocessing": "p", "count": COUNT} | changes
    return cached_features(tmp_path, "test", build=build, **key)


def test_built_once_and_equal(tmp_path):
    first = Counting()
    values = read(tmp_path, first)
    assert first.calls == [(0, CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, COUNT)]
    np.testing.assert_array_equal(values["square"], np.arange(COUNT, dtype=np.float32) ** 2)
    assert values["pair"].shape == (COUNT, 2)
    assert values["pair"].dtype == np.float16
    second = Counting()
    np.testing.assert_array_equal(read(tmp_path, second)["square"], values["square"])
    assert second.calls == []


def test_interrupted_build_goes_on_where_it_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path, Counting(fail_after=2))
    rest = Counting()
    values = read(tmp_path, rest)
    assert rest.calls == [(2 * CHUNK, COUNT)]
    np.testing.assert_array_equal(values["square"], np.arange(COUNT, dtype=np.float32) ** 2)


@pytest.mark.parametrize("key", ["data_hash", "model_hash", "preprocessing"])
def test_every_part_of_the_key_counts(tmp_path, key):
    read(tmp_path, Counting())
    other = Counting()
    read(tmp_path, other, **{key: "other"})
    assert len(other.calls) == 3


def test_files_are_safetensors(tmp_path):
    values = read(tmp_path, Counting())
    (path,) = tmp_path.glob("test-*/square.safetensors")
    np.testing.assert_array_equal(load_file(path)["square"], values["square"])


def test_a_changed_file_is_found(tmp_path):
    read(tmp_path, Counting())
    (path,) = tmp_path.glob("test-*/square.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=rf"square\.safetensors is corrupt: rows {2 * CHUNK} to {COUNT}.*delete"):
        read(tmp_path, Counting())


def test_a_truncated_file_is_found(tmp_path):
    read(tmp_path, Counting())
    (path,) = tmp_path.glob("test-*/square.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="delete"):
        read(tmp_path, Counting())


def test_a_full_disk_is_named_and_the_build_goes_on(tmp_path):
    whole = {field: np.array(values) for field, values in read(tmp_path / "whole", Counting()).items()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write .*free space.*goes on here"):
            read(tmp_path / "small", Counting())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    values = read(tmp_path / "small", Counting())
    for field, expected in whole.items():
        np.testing.assert_array_equal(values[field], expected)


def test_a_builder_that_changes_its_shapes_is_refused(tmp_path):
    def build(start: int, stop: int) -> dict[str, np.ndarray]:
        return {"x": np.zeros((stop - start, 2 + (start > 0)), np.float32)}

    with pytest.raises(DataError, match=r"x has shape \(256, 3\)"):
        read(tmp_path, build)


def test_module_hash_sees_values_and_names():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    before = module_hash(layer)
    assert module_hash(layer) == before
    with torch.no_grad():
        layer.bias[0] += 1e-6
    assert module_hash(layer) != before
    assert module_hash(torch.nn.Linear(2, 3)) != module_hash(torch.nn.Linear(3, 2))


@torch.no_grad()
def test_module_hash_sees_what_changes_the_function_but_no_weight(tmp_path):
    sizes = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2, "embed_dim": 8}
    tower = ImageTower(**sizes).eval()
    images = torch.rand(1, 3, 16, 16)
    found = {module_hash(tower)}
    for change in ({"heads": 4}, {"quick_gelu": True}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}):
        other = ImageTower(**sizes | change).eval()
        other.load_state_dict(tower.state_dict())
        assert not torch.allclose(other(images).embedding, tower(images).embedding), change
        found.add(module_hash(other))
    assert len(found) == 5
    tower.save_pretrained(tmp_path)  # which notes its version, and turns tuples into lists
    assert module_hash(ImageTower.from_pretrained(tmp_path)) == module_hash(tower)


def test_module_hash_sees_the_class():
    class Other(torch.nn.Linear):
        pass

    layer, other = torch.nn.Linear(2, 2), Other(2, 2)
    other.load_state_dict(layer.state_dict())
    assert module_hash(other) != module_hash(layer)
