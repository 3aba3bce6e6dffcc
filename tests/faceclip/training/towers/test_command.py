"""The files of an export: copied beside others, and stored in 16 bits."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from faceclip.errors import ConfigError
from faceclip.training.towers.command import copy_export, halve


def test_an_export_joins_the_towers_beside_it(tmp_path: Path) -> None:
    """`export=` may be a folder of other towers: they stay, and no file is ever half there."""
    (tmp_path / "towers" / "other").mkdir(parents=True)
    (tmp_path / "new" / "part").mkdir(parents=True)
    (tmp_path / "new" / "part" / "file").write_text("new")
    (tmp_path / "new" / "manifest.json").touch()
    copy_export(tmp_path / "new", tmp_path / "towers")
    assert sorted(str(path.relative_to(tmp_path / "towers")) for path in (tmp_path / "towers").rglob("*")) == [
        "other",
        "part",
        "part/file",
    ]


def test_halving_keeps_all_but_fp32(tmp_path: Path) -> None:
    file = tmp_path / "part" / "weights.safetensors"
    file.parent.mkdir()
    tensors = {"a": torch.tensor([1.0, 1 / 3]), "b": torch.tensor([3]), "c": torch.tensor([0.1]).half()}
    save_file(tensors, file)
    halve(tmp_path)
    found = load_file(file)
    assert all(torch.equal(found[name], tensors[name].half() if name == "a" else tensors[name]) for name in tensors)
    assert found["a"].dtype == torch.float16 and found["b"].dtype == torch.int64
    save_file({"a": torch.tensor([1e6])}, file)
    with pytest.raises(ConfigError, match="half=false"):
        halve(tmp_path)
