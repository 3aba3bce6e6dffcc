"""Digests by golden values: checkpoints and caches of earlier versions compare with what is computed now."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from faceclip.errors import DataError
from faceclip.storage.hashes import (
    bytes_hash,
    content_hash,
    file_hash,
    files_hash,
    frozen_hash,
    int64_hash,
    module_hash,
    settings_text,
    short_key,
)
from faceclip.towers.image import ImageTower


class Scaled(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, width: int = 3, licence: str = "") -> None:
        super().__init__()
        self.b = torch.nn.Parameter(torch.arange(width, dtype=torch.float32))
        self.a = torch.nn.Parameter(torch.ones(2, width, dtype=torch.float16))


def part(name: str, values: np.ndarray, kind: str) -> bytes:
    return f"{name}{values.shape}torch.{kind}".encode() + values.tobytes()


A, B = part("a", np.ones((2, 3), np.float16), "float16"), part("b", np.arange(3, dtype=np.float32), "float32")


def test_modules_by_class_settings_and_state():
    expected = hashlib.sha256(b'["Scaled", {"width": 3}]' + A + B).hexdigest()
    assert module_hash(Scaled()) == module_hash(Scaled(licence="MIT")) == expected
    linear = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(linear.weight, 2)
    weight = part("weight", np.full((1, 1), 2, np.float32), "float32")
    assert module_hash(linear) == hashlib.sha256(b'["Linear", {}]' + weight).hexdigest()
    torch.nn.init.constant_(linear.weight, 3)
    assert module_hash(linear) != hashlib.sha256(b'["Linear", {}]' + weight).hexdigest()


def test_frozen_parts_only():
    model = Scaled().requires_grad_(False)
    assert frozen_hash(model) == hashlib.sha256(b'{"width": 3}' + A + B).hexdigest()
    model.a.requires_grad_(True)
    assert frozen_hash(model) == hashlib.sha256(b'{"width": 3}' + B).hexdigest()


def test_settings_leave_out_origin_and_licence():
    assert settings_text({"b": 1, "_name_or_path": "x", "licence": "MIT", "a": None}) == '{"a": null, "b": 1}'


def test_bytes_and_numbers():
    values = np.arange(3)
    assert bytes_hash(b"a", values) == hashlib.sha256(b"a" + values.tobytes()).hexdigest()
    assert int64_hash(b"abc") == int.from_bytes(hashlib.sha256(b"abc").digest()[:8], "little", signed=True) < 0
    assert short_key("a", 1) == hashlib.sha256(b'["a", "1"]').hexdigest()[:20] != short_key("a1")


def test_files_by_name_and_content(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    first, second = (hashlib.sha256(text).digest() for text in (b"one", b"two"))
    assert file_hash(one) == first.hex()
    assert files_hash([("", two), ("n", one)], "head") == hashlib.sha256(b"head" + second + b"n" + first).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (root / "b.bin").write_bytes(b"second")
    (root / "sub" / "a.bin").write_bytes(b"first")
    return [root / "sub" / "a.bin", root / "b.bin"]


def expected(files: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(name.encode() + b"\0" + hashlib.sha256(content).hexdigest().encode() + b"\n")
    return total.hexdigest()


def test_names_and_contents_in_order(files: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    right = expected({"b.bin": b"second", "sub/a.bin": b"first"})
    assert content_hash(files, root, tmp_path / "memo.json") == right
    assert content_hash(files[::-1], root, tmp_path / "other.json") == right
    assert content_hash(files[:1], root, tmp_path / "memo.json") == expected({"sub/a.bin": b"first"})
    # Golden: caches of earlier releases are found by it.
    assert right == "910b817a9638c10ab90bded9ff4989f53748cef8da9b36b66ff95f1b0ef8ac8e"


def test_every_file_counts_also_after_a_change_of_the_same_length(files: list[Path], tmp_path: Path) -> None:
    root, memo = tmp_path / "data", tmp_path / "memo.json"
    found = [content_hash(files, root, memo)]
    files[0].write_bytes(b"FIRST")
    os.utime(files[0], ns=(1, 1))
    found.append(content_hash(files, root, memo))
    files[0].write_bytes(b"FIRST and more")
    os.utime(files[0], ns=(1, 1))
    found.append(content_hash(files, root, memo))
    renamed = files[0].rename(files[0].with_name("c.bin"))
    found.append(content_hash([renamed, files[1]], root, memo))
    assert len(set(found)) == 4
    assert found[-1] == expected({"b.bin": b"second", "sub/c.bin": b"FIRST and more"})


def test_digests_are_remembered_by_size_and_time(files: list[Path], tmp_path: Path) -> None:
    root, memo = tmp_path / "data", tmp_path / "memo.json"
    before = content_hash(files, root, memo)
    stored = json.loads(memo.read_text())
    status = files[1].stat()
    assert stored[str(files[1])] == [status.st_size, status.st_mtime_ns, hashlib.sha256(b"second").hexdigest()]
    files[1].write_bytes(b"SECOND")
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_hash(files, root, memo) == before  # as git's index, which trusts both
    # What is remembered of other files stays.
    content_hash(files[:1], root, memo)
    assert json.loads(memo.read_text()).keys() == {str(file) for file in files}
    written = memo.stat().st_mtime_ns
    content_hash(files, root, memo)
    assert memo.stat().st_mtime_ns == written  # nothing new, nothing written


def test_unreadable_files_and_memos_are_named(files: list[Path], tmp_path: Path) -> None:
    memo = tmp_path / "memo.json"
    with pytest.raises(DataError, match=r"gone\.bin"):
        content_hash([*files, tmp_path / "gone.bin"], tmp_path, memo)
    memo.write_text("{")
    with pytest.raises(DataError, match=r"memo\.json"):
        content_hash(files, tmp_path, memo)


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    # SHA-256 of "abc", FIPS 180-2.
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


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
