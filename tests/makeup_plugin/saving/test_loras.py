"""Saving beside LoRAs of others: added, fused, taken away."""

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from faceclip.errors import ConfigError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.adapters import lora_parameters, remove_lora
from tests.makeup_plugin.calls import run


@pytest.fixture
def saved(pipeline, tmp_path):
    directory = tmp_path / "pipeline"
    pipeline.save_pretrained(directory)
    return directory


def test_saving_again_without_lora_leaves_no_old_one(pipeline, saved, photo, points):
    remove_lora(pipeline.unet)
    wanted = run(pipeline, photo, points)
    pipeline.save_pretrained(saved)
    assert not (saved / "lora.safetensors").exists()
    assert np.array_equal(run(FaceMakeUpPipeline.from_pretrained(saved), photo, points), wanted)


def test_other_loras_can_be_added_and_taken_away(pipeline, unet_factory, photo, points, tmp_path):
    from diffusers import StableDiffusionXLPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    style = unet_factory()
    style.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(style))
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    wanted = run(pipeline, photo, points)
    pipeline.load_lora_weights(pretrained_model_name_or_path_or_dict=tmp_path, adapter_name="style")
    assert pipeline.get_active_adapters() == ["makeup", "style"]  # what the channels were trained with stays on
    both = run(pipeline, photo, points)
    assert not np.array_equal(both, wanted)
    pipeline.set_adapters(["makeup", "style"])
    assert np.array_equal(run(pipeline, photo, points), both)
    pipeline.delete_adapters("style")
    np.testing.assert_allclose(run(pipeline, photo, points), wanted, atol=1e-6)
    # diffusers' idiom, with the style alone active in between: what was trained with the channels comes back.
    pipeline.load_lora_weights(tmp_path, adapter_name="style")
    pipeline.set_adapters("style")
    assert not np.array_equal(run(pipeline, photo, points), wanted)
    pipeline.unload_lora_weights()
    assert list(pipeline.unet.peft_config) == ["makeup"]
    np.testing.assert_allclose(run(pipeline, photo, points), wanted, atol=1e-6)


@pytest.mark.parametrize("of_an_instance", [False, True])
def test_loras_are_saved_as_in_diffusers(of_an_instance, pipeline, tmp_path):
    layers = {name: value.detach() for name, value in pipeline.unet.state_dict().items() if "lora_" in name}
    owner = pipeline if of_an_instance else FaceMakeUpPipeline
    owner.save_lora_weights(tmp_path, unet_lora_layers=layers)
    (file,) = tmp_path.glob("*.safetensors")
    assert len(load_file(file)) == len(layers) > 0


def test_an_adapter_leaves_a_style_on(pipeline, tmp_path):
    adapter = pipeline.save_adapter(tmp_path)
    pipeline.unload_adapter()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    pipeline.load_adapter(adapter)
    assert pipeline.get_active_adapters() == ["style", "makeup"]
    assert not any(value.requires_grad for value in lora_parameters(pipeline.unet))


def test_lora_weights_as_a_dictionary(pipeline):
    """Names of kohya's trainer are converted, and not in the caller's dictionary."""
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    state = {
        f"{name}.lora_down.weight": torch.ones(2, 16),
        f"{name}.lora_up.weight": torch.ones(16, 2),
        f"{name}.alpha": torch.tensor(2.0),
    }
    for number in range(2):
        pipeline.load_lora_weights(state, adapter_name=f"style{number}", low_cpu_mem_usage=False)
    assert len(state) == 3
    assert pipeline.get_active_adapters() == ["makeup", "style0", "style1"]
    with pytest.raises(ConfigError, match=r"LoRA.*: unet\.conv_in\.weight "):
        pipeline.load_lora_weights({"unet.conv_in.weight": torch.ones(1)})
    with pytest.raises(ConfigError, match=r"LoRA .*UNet, .*'text_encoder\.q\.lora_A\.weight'"):
        pipeline.load_lora_weights({"text_encoder.q.lora_A.weight": torch.ones(1)})


def test_a_fused_lora_is_neither_saved_into_the_base_nor_left_there(pipeline, base_parts, photo, points, tmp_path):
    """Fused weights look like the base's: everything that takes them for the base's refuses, and undoing works."""
    wanted = run(pipeline, photo, points, watermark=False)
    pipeline.fuse_lora()
    np.testing.assert_allclose(run(pipeline, photo, points, watermark=False), wanted, atol=1e-5)
    for call in (
        lambda: pipeline.save_pretrained(tmp_path / "pipeline"),
        lambda: pipeline.save_adapter(tmp_path / "adapter"),
        lambda: pipeline.load_adapter(tmp_path),
        lambda: pipeline.delete_adapters("makeup"),
        pipeline.unload_adapter,
    ):
        with pytest.raises(ConfigError, match=r"'makeup' .*unfuse_lora\(\)"):
            call()
    assert not list(tmp_path.iterdir())
    assert pipeline.identity_channel is not None
    pipeline.unfuse_lora()
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = FaceMakeUpPipeline.from_pretrained(tmp_path / "pipeline")
    np.testing.assert_allclose(run(loaded, photo, points, watermark=False), wanted, atol=1e-5)
    pipeline.unload_adapter()
    base = base_parts()["unet"].state_dict()
    for key, value in pipeline.unet.state_dict().items():
        torch.testing.assert_close(value, base[key], atol=1e-6, rtol=0)


def test_a_fused_style_is_not_saved_either(pipeline, tmp_path):
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False)
    pipeline.unet.add_adapter(config, adapter_name="style")
    pipeline.fuse_lora(adapter_names=["style"])
    with pytest.raises(ConfigError, match=r"'style' .*unfuse_lora\(\)"):
        pipeline.save_pretrained(tmp_path / "pipeline")
    with pytest.raises(ConfigError, match=r"'style' .*unfuse_lora\(\)"):
        pipeline.unload_lora_weights()
