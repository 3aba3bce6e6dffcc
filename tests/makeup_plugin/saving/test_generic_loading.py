"""Saved pipelines in the hands of diffusers' own loader, and several ControlNets in the folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, MultiControlNetModel
from safetensors.torch import load_file, save_file

from faceclip.errors import CheckpointError
from makeup_plugin import FaceMakeUpImg2ImgPipeline, FaceMakeUpPipeline
from tests.makeup_plugin.bases import make_base as make_plain_base
from tests.makeup_plugin.calls import run
from tests.makeup_plugin.conftest import make_base
from tests.makeup_plugin.test_controls import make_controlnet


def test_diffusers_loads_the_whole_pipeline(pipeline, photo, points, tmp_path):
    pipeline.save_pretrained(tmp_path, licence="MIT")
    wanted = run(pipeline, photo, points)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is FaceMakeUpPipeline and loaded.licence == "MIT"
    assert np.array_equal(run(loaded, photo, points), wanted)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    other = DiffusionPipeline.from_pretrained(again, scheduler=EulerDiscreteScheduler())
    assert isinstance(other.scheduler, EulerDiscreteScheduler)
    changed = FaceMakeUpImg2ImgPipeline.from_pipe(other)
    assert type(changed) is FaceMakeUpImg2ImgPipeline and len(changed.unet.peft_config) == 1
    changed.save_pretrained(tmp_path / "edits")
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "edits")) is FaceMakeUpImg2ImgPipeline


def test_diffusers_does_not_load_a_pipeline_without_its_lora(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    (tmp_path / "lora.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lora\.safetensors"):
        DiffusionPipeline.from_pretrained(tmp_path)
    (tmp_path / "adapter.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter\.json"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_diffusers_does_not_load_a_hub_id(pipeline, tmp_path):
    """It has the components of the revision, and tells nobody which one that was."""
    kept, commit = tmp_path / "models--owner--faces", "0123456789abcdef0123456789abcdef01234567"
    pipeline.save_pretrained(kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "v2").write_text(commit)
    place = {"cache_dir": tmp_path, "local_files_only": True, "revision": "v2"}
    with pytest.raises(CheckpointError, match=r"^owner/faces .*FaceMakeUpPipeline\.from_pretrained"):
        DiffusionPipeline.from_pretrained("owner/faces", **place)
    assert len(FaceMakeUpPipeline.from_pretrained("owner/faces", **place).unet.peft_config) == 1


def test_several_controlnets_are_saved_and_loaded(photo, tmp_path):
    networks = [make_controlnet(seed) for seed in (11, 12, 13)]
    pictures = [photo] * 3
    several = FaceMakeUpPipeline(**make_base(), controlnet=networks)
    several.save_pretrained(tmp_path)
    wanted = run(several, None, None, control_image=pictures)
    for loaded in (FaceMakeUpPipeline.from_pretrained(tmp_path), DiffusionPipeline.from_pretrained(tmp_path)):
        assert isinstance(loaded.controlnet, MultiControlNetModel) and len(loaded.controlnet.nets) == 3
        assert np.array_equal(run(loaded, None, None, control_image=pictures), wanted)
    FaceMakeUpPipeline(**make_base(), controlnet=networks[:2]).save_pretrained(tmp_path)
    assert len(FaceMakeUpPipeline.from_pretrained(tmp_path).controlnet.nets) == 2
    weights = tmp_path / "controlnet_1" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state.pop("conv_in.weight")
    save_file(state, weights)
    for kind in (FaceMakeUpPipeline, DiffusionPipeline):
        with pytest.raises(CheckpointError, match=r"controlnet_1\b.*conv_in\.weight"):
            kind.from_pretrained(tmp_path)
    state["conv_in.weight"] = torch.full_like(networks[1].conv_in.weight, torch.nan)
    save_file(state, weights)
    with pytest.raises(CheckpointError, match=r"controlnet.*conv_in\.weight"):
        FaceMakeUpPipeline.from_pretrained(tmp_path)


def without(path: Path, name: str) -> None:
    """Removes a tensor from a file."""
    state = load_file(path)
    state.pop(name)
    save_file(state, path, metadata={"format": "pt"})


def test_diffusers_loads_a_folder_strictly_however_its_name_is_written(pipeline, tmp_path, monkeypatch):
    pipeline.save_pretrained(tmp_path / "saved")
    without(tmp_path / "saved" / "vae" / "diffusion_pytorch_model.safetensors", "encoder.conv_in.weight")
    monkeypatch.chdir(tmp_path)
    for place in ("./saved", "saved/", "saved"):
        with pytest.raises(CheckpointError, match=r"vae\b.*encoder\.conv_in\.weight"):
            DiffusionPipeline.from_pretrained(place)
    assert DiffusionPipeline.from_pretrained("./saved", vae=pipeline.vae).vae is pipeline.vae


def test_diffusers_loads_text_towers_strictly(tmp_path):
    pipeline = FaceMakeUpPipeline(**make_plain_base("sdxl"))
    pipeline.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    arguments = {"num_inference_steps": 1, "output_type": "latent"}
    first, second = (
        one("a b", generator=torch.Generator().manual_seed(0), **arguments).images for one in (pipeline, loaded)
    )
    assert torch.equal(first, second)
    path = tmp_path / "text_encoder_2" / "model.safetensors"
    name = "text_model.final_layer_norm.weight"
    without(path, name)
    with pytest.raises(CheckpointError, match=rf"text_encoder_2\b.*{name}"):
        DiffusionPipeline.from_pretrained(tmp_path)
