"""Weights and parts that cannot give a picture: a typed error that names the step, the part or the argument."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from faceclip.errors import ConfigError, NonFiniteLatentsError
from makeup_plugin.calls.defaults import read_defaults
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.adapters import LoraSettings, add_lora, lora_parameters
from tests.makeup_plugin.calls import run


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


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("scheduler", "prediction_type", 5),
        ("scheduler", "steps_offset", 10**6),
        ("vae", "scaling_factor", "x"),
        ("unet", "sample_size", None),
        ("shading_channel", "controlnet_conditioning_channel_order", "../.."),
    ],
)
def test_a_part_that_cannot_compute_is_named(pipeline, photo, points, part: str, setting: str, value: object) -> None:
    getattr(pipeline, part).register_to_config(**{setting: value})
    with pytest.raises(ConfigError, match=part):
        run(pipeline, photo, points)


def test_errors_of_callbacks_stay_what_they_are(pipeline: FaceMakeUpPipeline) -> None:
    def callback(pipe, step, timestep, tensors):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        pipeline("a man", num_inference_steps=1, callback_on_step_end=callback)

    def decodes_a_wrong_shape(pipe, step, timestep, tensors):
        return {"latents": pipe.vae.decode(tensors["latents"][:, :2])}

    with pytest.raises(RuntimeError, match="channels"):
        pipeline("a man", num_inference_steps=1, callback_on_step_end=decodes_a_wrong_shape)


def test_sizes_and_steps_beyond_reason(pipeline: FaceMakeUpPipeline) -> None:
    with pytest.raises(ConfigError, match="num_inference_steps"):
        pipeline("a man", num_inference_steps=10**9)
    with pytest.raises(ConfigError, match="default_call: num_inference_steps"):
        read_defaults({"num_inference_steps": 10**9})
    pipeline.unet.register_to_config(sample_size=10**9)
    with pytest.raises(ConfigError, match="height and width"):
        run(pipeline, None, None)
