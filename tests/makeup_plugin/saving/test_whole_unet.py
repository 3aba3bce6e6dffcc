"""Adapters that hold all of the UNet: saved apart, put in place of the base's, and taken away again."""

import copy
import json

import numpy as np
import pytest
import torch

from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.adapters import remove_lora
from tests.makeup_plugin.calls import run


@pytest.fixture
def tuned(pipeline):
    """A pipeline whose UNet was trained as a whole."""
    remove_lora(pipeline.unet)
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in pipeline.unet.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    pipeline.whole_unet = True
    return pipeline


@pytest.fixture
def base(base_parts, pipeline):
    return FaceMakeUpPipeline(**base_parts(), image_encoder=pipeline.image_encoder, face_fitter=pipeline.face_fitter)


def test_a_saved_pipeline_draws_with_the_tuned_unet(tuned, photo, points, tmp_path):
    wanted = run(tuned, photo, points)
    tuned.save_pretrained(tmp_path)
    loaded = FaceMakeUpPipeline.from_pretrained(tmp_path)
    assert loaded.whole_unet and np.array_equal(run(loaded, photo, points), wanted)
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter.json").read_text())["unet"] == "full"
    with pytest.raises(ConfigError, match="from_base"):
        loaded.unload_adapter()
    assert np.array_equal(run(loaded, photo, points), wanted)


def test_an_adapter_takes_the_place_of_the_bases_unet_and_gives_it_back(tuned, base, photo, points, tmp_path):
    wanted, plain = run(tuned, photo, points), run(base, photo, points)
    tuned.save_adapter(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter.json", "identity_channel", "shading_channel", "unet"}
    base.load_adapter(tmp_path)
    assert np.array_equal(run(base, photo, points), wanted)
    assert np.array_equal(run(FaceMakeUpPipeline.from_pipe(base), photo, points), wanted)
    base.unload_adapter()
    assert np.array_equal(run(base, photo, points), plain) and not base.whole_unet
    base.load_adapter(tmp_path)
    assert np.array_equal(run(base, photo, points), wanted)


def test_pipelines_that_share_an_adapters_unet_take_turns(tuned, base, tmp_path):
    tuned.save_adapter(tmp_path)
    before = FaceMakeUpPipeline.from_pipe(base)
    base.load_adapter(tmp_path)
    after = FaceMakeUpPipeline.from_pipe(base)
    copied = copy.deepcopy(base)
    for drawing, others in ((base, (before, after)), (after, (base, before)), (copied, (copied.from_pipe(copied),))):
        refused = []

        def callback(pipe, step, timestep, tensors, others=others, refused=refused):
            for other in others:
                with pytest.raises(ConfigError, match="callback"):
                    other.unload_adapter()
                refused.append(other)

        drawing("a man", num_inference_steps=1, output_type="latent", callback_on_step_end=callback)
        assert len(refused) == len(others)
    after.unload_adapter()
    assert base.whole_unet and not after.whole_unet


def test_no_lora_is_lost(tuned, pipeline, base, tmp_path):
    tuned.save_adapter(tmp_path)
    style = {
        "unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(
            1, base.unet.mid_block.attentions[0].proj_in.in_features
        )
    }
    style["unet.mid_block.attentions.0.proj_in.lora_B.weight"] = torch.zeros(
        base.unet.mid_block.attentions[0].proj_in.out_features, 1
    )
    base.load_lora_weights(style, adapter_name="style")
    with pytest.raises(ConfigError, match=r"'style'.*unload_lora_weights"):
        base.load_adapter(tmp_path)
    base.unload_lora_weights()
    base.load_adapter(tmp_path)
    base.load_lora_weights(style, adapter_name="style")
    with pytest.raises(ConfigError, match=r"'style'.*unload_lora_weights"):
        base.unload_adapter()
    assert base.whole_unet and "style" in base.unet.peft_config


def test_damage_is_named_before_anything_changes(tuned, base, photo, points, tmp_path):
    plain = run(base, photo, points)
    tuned.save_adapter(tmp_path)
    settings = json.loads((tmp_path / "adapter.json").read_text())
    for change, named in (
        ({"unet": "half"}, "unet is 'half'"),
        ({"lora": {"rank": 1, "alpha": 1, "target_modules": ["to_q"]}}, "unet is 'full'"),
        ({"format": 3}, "format 3"),
    ):
        (tmp_path / "adapter.json").write_text(json.dumps(settings | change))
        with pytest.raises(CheckpointError, match=named):
            base.load_adapter(tmp_path)
    (tmp_path / "adapter.json").write_text(json.dumps(settings))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="unet"):
        base.load_adapter(tmp_path)
    assert np.array_equal(run(base, photo, points), plain)
