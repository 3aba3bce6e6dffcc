"""Saved pipelines in the hands of diffusers' own loader, and several ControlNets in the folder."""

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, MultiControlNetModel
from safetensors.torch import load_file, save_file

from faceclip.errors import CheckpointError
from makeup_plugin import FaceMakeUpImg2ImgPipeline, FaceMakeUpPipeline
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
    with pytest.raises(CheckpointError, match=r"controlnet_1\b.*conv_in\.weight"):
        FaceMakeUpPipeline.from_pretrained(tmp_path)
    state["conv_in.weight"] = torch.full_like(networks[1].conv_in.weight, torch.nan)
    save_file(state, weights)
    with pytest.raises(CheckpointError, match=r"controlnet.*conv_in\.weight"):
        FaceMakeUpPipeline.from_pretrained(tmp_path)
