"""DreamSim's package by a stand-in of its documented interface; what is missing is said with a command."""

import sys

import numpy as np
import pytest

from eval.metrics.dreamsim import DreamSimModel
from eval.metrics.models import MissingModelError
from faceclip.errors import CheckpointError

PICTURES = [np.full((20, 30, 3), value, np.uint8) for value in (0, 100, 100)]
PACKAGE = '''
"""Embeddings are mean and deviation of the resized picture, as a batch of one that was squeezed."""

import numpy as np
import torch


class Model:
    def embed(self, pixels):
        return torch.stack([pixels.mean() + 1, pixels.std() + 1])


def dreamsim(pretrained, device, cache_dir):
    if not pretrained or device != "cpu" or (open(f"{cache_dir}/ensemble_lora/weights").read() == "broken"):
        raise RuntimeError("no weights of DreamSim")
    return Model(), lambda picture: torch.from_numpy(np.array(picture.resize((8, 8)), np.float32))[None] / 255
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "dreamsim.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.delitem(sys.modules, "dreamsim", raising=False)
    yield
    sys.modules.pop("dreamsim", None)


def test_pictures_have_embeddings_and_the_weights_a_hash(package, tmp_path):
    folder = tmp_path / "weights" / "ensemble_lora"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("first")
    model = DreamSimModel(str(tmp_path / "weights"))
    found = model.pictures(PICTURES)
    assert found.shape == (3, 2) and found.dtype == np.float32
    np.testing.assert_array_equal(found[1], found[2])
    assert found[0, 0] != found[1, 0] and model.pictures([]).shape == (0, 1)
    (folder / "weights").write_text("other")
    assert DreamSimModel(str(tmp_path / "weights")).facts.sha256 != model.facts.sha256
    (folder / "weights").write_text("broken")
    with pytest.raises(CheckpointError, match="weights"):
        DreamSimModel(str(tmp_path / "weights"))


def test_weights_are_never_downloaded(package, tmp_path):
    with pytest.raises(MissingModelError, match=r"absent.*dreamsim\(device='cpu'"):
        DreamSimModel(str(tmp_path / "absent"))


def test_a_missing_package_is_said_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(MissingModelError, match="pip install dreamsim"):
        DreamSimModel()
