"""Pipelines whose components are quantized while they are loaded."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig, TorchAoConfig

from faceclip.encoder import FaceCLIP
from faceclip.errors import ConfigError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.quantized import check_quantization
from tests.makeup_plugin.calls import run
from tests.makeup_plugin.conftest import make_joint_encoder, make_pipeline

PLAIN = ("joint_encoder", "face_encoder", "face_fitter", "identity_channel")


@pytest.fixture
def eight_bits():
    """A configuration of the named components."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao (extra quantized) is not installed")

    def config(*names: str) -> PipelineQuantizationConfig:
        return PipelineQuantizationConfig(
            quant_mapping={name: TorchAoConfig(quantization.Int8WeightOnlyConfig()) for name in names}
        )

    return config


def naming(*, mapping=None, names=None) -> SimpleNamespace:
    """What is read of a configuration; one of diffusers asks for an installed backend."""
    return SimpleNamespace(quant_mapping=mapping, components_to_quantize=names)


@pytest.mark.parametrize("name", PLAIN)
def test_components_that_cannot_be_quantized_are_named(name, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    for config in (naming(mapping={"unet": None, name: None}), naming(names=["unet", name])):
        with pytest.raises(ConfigError, match=rf"^quantization_config: {name}\b"):
            FaceMakeUpPipeline.from_pretrained(tmp_path, quantization_config=config)


@pytest.mark.parametrize("config", [naming(), naming(names=[]), naming(mapping={})])
def test_a_configuration_without_names_means_all_and_is_refused(config):
    with pytest.raises(ConfigError, match=r"^quantization_config .*\bcomponents_to_quantize="):
        check_quantization(config)


def test_other_components_may_be_quantized():
    check_quantization(None)
    check_quantization(naming(mapping={"unet": None, "image_encoder": None}))
    check_quantization(naming(names=["shading_channel", "controlnet", "vae"]))


def test_a_component_that_was_quantized_before_is_named(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    encoder = make_joint_encoder()
    encoder.hf_quantizer = "as diffusers marks it"
    with pytest.raises(ConfigError, match=r"^joint_encoder is quantized"):
        FaceMakeUpPipeline.from_pretrained(tmp_path, joint_encoder=encoder)


def test_a_joint_encoder_refuses_to_be_quantized(tmp_path):
    make_joint_encoder().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^quantization_config: a FaceCLIP "):
        FaceCLIP.from_pretrained(tmp_path, quantization_config=naming(names=["joint_encoder"]))


def test_quantized_networks_draw_nearly_the_same(eight_bits, photo, points, tmp_path):
    pipeline = make_pipeline(lora=False)
    pipeline.save_pretrained(tmp_path)
    names = ("unet", "shading_channel", "image_encoder")
    loaded = FaceMakeUpPipeline.from_pretrained(tmp_path, quantization_config=eight_bits(*names), dtype=torch.float32)
    for name in names:
        weights = [type(value.data) for value in getattr(loaded, name).parameters()]
        assert any(kind is not torch.Tensor for kind in weights)
    wanted, found = run(pipeline, photo, points), run(loaded, photo, points)
    assert 0 < np.abs(found - wanted).max() < 0.05
    with pytest.raises(ConfigError, match=r"^unet is quantized"):
        loaded.save_pretrained(tmp_path / "again")


def test_what_cannot_be_quantized_is_named(eight_bits, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^quantization_config: .*lora\.safetensors"):
        FaceMakeUpPipeline.from_pretrained(tmp_path, quantization_config=eight_bits("unet"))
    for name in ("joint_encoder", "identity_channel"):
        with pytest.raises(ConfigError, match=rf"^quantization_config: {name}"):
            FaceMakeUpPipeline.from_pretrained(tmp_path, quantization_config=eight_bits(name))
    # diffusers' own loader looks at no names.
    with pytest.raises(ConfigError, match=r"^quantization_config: .* joint_encoder"):
        DiffusionPipeline.from_pretrained(tmp_path, quantization_config=eight_bits("joint_encoder"))
    for name in ("identity_channel", "face_fitter"):
        with pytest.raises(ConfigError, match=rf"^{name} is quantized"):
            DiffusionPipeline.from_pretrained(tmp_path, quantization_config=eight_bits(name))
