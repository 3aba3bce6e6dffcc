"""Pipelines whose components are quantized while they are loaded."""

import numpy as np
import pytest
import torch
from diffusers import PipelineQuantizationConfig, TorchAoConfig

from faceclip.errors import ConfigError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from tests.makeup_plugin.calls import run
from tests.makeup_plugin.conftest import make_pipeline

quantization = pytest.importorskip("torchao.quantization", reason="torchao (extra quantized) is not installed")


def eight_bits(*names: str) -> PipelineQuantizationConfig:
    return PipelineQuantizationConfig(
        quant_mapping={name: TorchAoConfig(quantization.Int8WeightOnlyConfig()) for name in names}
    )


def test_quantized_networks_draw_nearly_the_same(photo, points, tmp_path):
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


def test_what_cannot_be_quantized_is_named(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^quantization_config: joint_encoder"):
        FaceMakeUpPipeline.from_pretrained(tmp_path, quantization_config=eight_bits("joint_encoder"))
    with pytest.raises(ConfigError, match=r"^quantization_config: .*lora\.safetensors"):
        FaceMakeUpPipeline.from_pretrained(tmp_path, quantization_config=eight_bits("unet"))
