"""Digests by golden values: checkpoints and caches of earlier versions compare with what is computed now."""

import hashlib
import os

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


def test_known_files_are_not_read_again(tmp_path):
    memo, file = tmp_path / "memo.json", tmp_path / "a"
    file.write_bytes(b"old")
    digest = content_hash([file], tmp_path, memo)
    assert digest == hashlib.sha256(f"a\0{hashlib.sha256(b'old').hexdigest()}\n".encode()).hexdigest()
    stat = file.stat()
    file.write_bytes(b"new")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content_hash([file], tmp_path, memo) == digest
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert content_hash([file], tmp_path, memo) != digest
    memo.write_text("{")
    with pytest.raises(DataError, match=r"memo\.json"):
        content_hash([file], tmp_path, memo)
    with pytest.raises(DataError, match="gone"):
        content_hash([tmp_path / "gone"], tmp_path, tmp_path / "other.json")
