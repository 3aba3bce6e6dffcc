"""Weights and parts that cannot give a picture: a typed error that names the step, the part or the argument."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from faceclip.errors import ConfigError, NonFiniteLatentsError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.adapters import LoraSettings, add_lora, lora_parameters
from tests.makeup_plugin.calls import run
from tests.makeup_plugin.conftest import make_pipeline


@pytest.fixture
def pipeline() -> FaceMakeUpPipeline:
    return make_pipeline()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_name_the_step(pipeline: FaceMakeUpPipeline, value: float) -> None:
    def callback(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * (value if step == 1 else 1.0)}

    with pytest.raises(NonFiniteLatentsError, match=r"after step \d of 4"):
        pipeline("a man", num_inference_steps=4, callback_on_step_end=callback)
    lora_parameters(pipeline.unet)[0].data.fill_(value)
    with pytest.raises(NonFiniteLatentsError, match="after step 1 of 2"):
        run(pipeline, None, None)


def test_pixels_that_are_not_finite_name_the_autoencoder(pipeline: FaceMakeUpPipeline) -> None:
    pipeline.vae.decoder.conv_out.weight.data[0] = float("nan")
    with pytest.raises(NonFiniteLatentsError, match="autoencoder"):
        run(pipeline, None, None)


def test_one_part_in_another_precision(pipeline: FaceMakeUpPipeline) -> None:
    pipeline.unet.to(torch.bfloat16)
    with pytest.raises(ConfigError, match="identity_channel"):
        run(pipeline, None, None)
    pipeline.to(torch.float32)
    for part in (pipeline.vae, pipeline.joint_encoder, pipeline.image_encoder):
        part.to(torch.bfloat16)
        assert np.isfinite(run(pipeline, None, None)).all()


def test_schedulers_of_flow_matching(pipeline: FaceMakeUpPipeline) -> None:
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ConfigError, match="scheduler: FlowMatchEulerDiscreteScheduler"):
        run(pipeline, None, None)


@pytest.mark.parametrize("name", ["a.b", "", 5])
def test_names_of_loras_without_dots(pipeline: FaceMakeUpPipeline, name: object) -> None:
    with pytest.raises(ConfigError, match="adapter_name"):
        pipeline.load_lora_weights({}, adapter_name=name)
    with pytest.raises(ConfigError, match="adapter_name"):
        add_lora(pipeline.unet, LoraSettings(rank=1), name=name)
