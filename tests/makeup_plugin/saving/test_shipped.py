"""Pipelines that ship with the package."""

from types import SimpleNamespace

import pytest

from faceclip import weights
from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.pipeline import FaceMakeUpPipeline


def test_the_name_tiny_is_the_shipped_pipeline():
    assert FaceMakeUpPipeline.from_pretrained("tiny").config._name_or_path == "tiny"


def test_an_installation_without_it_says_how_to_train_one(monkeypatch):
    def nothing(name: str, *, package: str = "faceclip"):
        raise CheckpointError(f"{package} ships no weights {name!r}")

    monkeypatch.setattr(weights, "path", nothing)
    with pytest.raises(CheckpointError, match=r"tiny.*python -m eval\.demo"):
        FaceMakeUpPipeline.from_pretrained("tiny")


@pytest.mark.parametrize(
    "option", [{"device_map": "cuda"}, {"quantization_config": SimpleNamespace(quant_mapping={"image_encoder": 1})}]
)
def test_options_that_would_not_reach_its_towers_are_refused(option):
    with pytest.raises(ConfigError, match="device_map"):
        FaceMakeUpPipeline.from_pretrained("tiny", **option)


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(CheckpointError, match=r"adapter\.json"):
        FaceMakeUpPipeline.from_pretrained("tiny")
