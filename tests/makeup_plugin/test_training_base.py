"""The base that stage 2 starts from: its parts are named when they are missing, and its name is kept."""

import json

import pytest

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError
from train_generator.config import GeneratorConfig
from train_generator.loading import base_directory, build_pipeline


@pytest.fixture
def config(pipeline, tmp_path) -> GeneratorConfig:
    """A stage-1 export and a base, as on disk."""
    pipeline.joint_encoder.save_pretrained(tmp_path / "encoder")
    pipeline.image_encoder.save_pretrained(tmp_path / "encoder" / "image_tower")
    pipeline.save_pretrained(tmp_path / "base")
    return GeneratorConfig(encoder=str(tmp_path / "encoder"), base=str(tmp_path / "base"), fitter="")


def test_adapter_names_the_base_it_was_trained_on(config, tmp_path):
    directory = build_pipeline(config).save_adapter(tmp_path / "adapter")
    assert json.loads((directory / "adapter.json").read_text())["base_model"] == "base"


@pytest.mark.parametrize("part", ["base/unet", "base/vae", "base/scheduler", "encoder/image_tower"])
def test_missing_parts_name_the_argument(config, tmp_path, part):
    (tmp_path / part).rename(tmp_path / "away")
    with pytest.raises(CheckpointError, match=rf"^{part.split('/')[0]}="):
        build_pipeline(config)


def test_an_encoder_with_two_face_encoders_is_refused(config, pipeline):
    shared = pipeline.joint_encoder
    own = FaceCLIP(**{name: value for name, value in shared.config.items() if name[0] != "_"} | {"shared_face": False})
    own.save_pretrained(config.encoder)
    with pytest.raises(ConfigError, match=r"^encoder="):
        build_pipeline(config)


@pytest.mark.parametrize("name", ["runs/bse", "./bse", "/nowhere/bse", "a/b/c", "there/bse"])
def test_misspelt_paths_are_not_looked_up_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match=f"^base={name}: "):
        base_directory(name)
