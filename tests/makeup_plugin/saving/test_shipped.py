"""Pipelines that ship with the package."""

import pytest

from faceclip import weights
from faceclip.errors import CheckpointError
from makeup_plugin.pipeline import FaceMakeUpPipeline


def test_the_name_tiny_is_the_shipped_pipeline_or_says_how_to_train_one():
    try:
        weights.path("tiny/pipeline", package="makeup_plugin")
    except CheckpointError:
        with pytest.raises(CheckpointError, match=r"tiny.*python -m eval\.demo"):
            FaceMakeUpPipeline.from_pretrained("tiny")
    else:
        assert FaceMakeUpPipeline.from_pretrained("tiny").config._name_or_path == "tiny"


def test_the_shipped_folder_is_loaded_by_its_name(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path / "weights" / "tiny" / "pipeline")
    monkeypatch.setattr(weights, "path", lambda name, package: tmp_path / "weights" / name)
    loaded = FaceMakeUpPipeline.from_pretrained("tiny")
    assert loaded.config._name_or_path == "tiny" and loaded.identity_channel is not None


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(CheckpointError, match=r"adapter\.json"):
        FaceMakeUpPipeline.from_pretrained("tiny")
