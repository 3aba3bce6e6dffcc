"""How much the identity channel counts: by block, per picture, over the steps."""

import numpy as np
import pytest
import torch
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales

from faceclip.errors import ConfigError
from makeup_plugin.scales import block_scales, check_identity_scale
from tests.makeup_plugin.calls import run


def latents(pipeline, photo, points, **arguments) -> torch.Tensor:
    settings = {"num_inference_steps": 4, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipeline("a man", photo, landmarks=points, shading_scale=0, **{**settings, **arguments}).images


@pytest.mark.parametrize(
    "blocks",
    [
        {"down": 0.5, "mid": 0.25, "up": 1.0},
        {"down": {"block_1": 0.3}},
        {"up": {"block_0": [0.1, 0.9], "block_1": 0.2}},
        {"down": {"block_0": [0.7]}, "up": 0.4},
    ],
)
def test_blocks_mean_what_they_mean_in_diffusers(unet, channel, blocks):
    names = channel.config.layer_names
    (wanted,) = _maybe_expand_lora_scales(unet, [blocks], default_scale=0.0)

    def diffusers_scale(name: str) -> float:
        found = [scale for part, scale in wanted.items() if name.startswith(part)] if isinstance(wanted, dict) else []
        return found[0] if found else 0.0

    assert block_scales(blocks, names) == [diffusers_scale(name) for name in names]


def test_blocks_weigh_the_layers(pipeline, photo, points):
    one = latents(pipeline, photo, points)
    everything = {"down": 1.0, "mid": 1.0, "up": 1.0}
    assert torch.equal(latents(pipeline, photo, points, identity_scale=everything), one)
    assert torch.equal(
        latents(pipeline, photo, points, identity_scale={}), latents(pipeline, photo, points, identity_scale=0)
    )
    down, up = (latents(pipeline, photo, points, identity_scale={part: 1.0}) for part in ("down", "up"))
    assert not torch.equal(down, up) and not torch.equal(down, one)
    assert pipeline.identity_channel.scale == 1.0


def test_each_picture_has_its_own_scale(pipeline, photo, points):
    def one(scale: float) -> torch.Tensor:
        return latents(pipeline, photo, points, identity_scale=scale, latents=noise)

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    several = {"num_images_per_prompt": 3, "latents": noise.repeat(3, 1, 1, 1)}
    found = latents(pipeline, photo, points, identity_scale=[1, 0.5, 0], **several)
    for row, scale in enumerate((1, 0.5, 0)):
        torch.testing.assert_close(found[row], one(scale)[0], atol=1e-4, rtol=1e-4)


def test_the_channel_runs_in_its_share_of_the_steps(pipeline, photo, points):
    scales: list[float] = []

    def watch(pipe, step, timestep, tensors):
        scales.append(pipe.identity_channel.scale)
        return {}

    def run(**arguments) -> list[float]:
        scales.clear()
        latents(pipeline, photo, points, callback_on_step_end=watch, **arguments)
        return list(scales)

    assert run(identity_scale=0.5) == [0.5] * 4
    assert run(identity_start=0.25, identity_end=0.75) == [0, 1, 1, 0]
    assert run(identity_scale=0.5, identity_schedule=[1, 0.5, 0.25, 0]) == [0.5, 0.25, 0.125, 0]
    assert run(identity_schedule=lambda done: 1 - done, identity_end=0.75) == [1, 0.75, 0.5, 0]
    assert run() == [1] * 4
    output = pipeline(
        "a man", photo, landmarks=points, num_inference_steps=2, identity_end=0.5, identity_scale={"up": 1}
    )
    settings = output.provenance[0].settings
    assert settings["identity_scale"] == {"up": 1} and settings["identity_end"] == 0.5


def test_numbers_give_the_bits_of_before(pipeline, photo, points):
    wanted = run(pipeline, photo, points, identity_scale=0.7)
    assert np.array_equal(run(pipeline, photo, points, identity_scale=0.7, identity_schedule=[1.0, 1.0]), wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"identity_scale": {"side": 1.0}}, r"identity_scale\['side'\]"),
        ({"identity_scale": {"down": {"block_7": 1.0}}}, r"identity_scale\['down'\]\['block_7'\]"),
        ({"identity_scale": {"mid": {"block_0": 1.0}}}, r"identity_scale\['mid'\]\['block_0'\]"),
        ({"identity_scale": {"up": {"block_0": [1.0]}}}, "2 attentions"),
        ({"identity_scale": {"up": "much"}}, r"identity_scale\['up'\]"),
        ({"identity_scale": []}, "identity_scale is an empty list"),
        ({"identity_scale": [1.0, float("nan")]}, r"identity_scale\[1\]"),
        ({"identity_scale": [1.0, 0.5]}, "identity_scale: 2 numbers"),
        ({"identity_start": 0.5, "identity_end": 0.5}, "identity_start"),
        ({"identity_end": 1.5}, "identity_end"),
        ({"identity_start": "now"}, "identity_start"),
        ({"identity_schedule": [1.0]}, "identity_schedule: 4 steps"),
        ({"identity_schedule": "falling"}, "identity_schedule must be"),
        ({"identity_schedule": lambda done: None}, "identity_schedule must be"),
    ],
)
def test_impossible_scales_are_named(untouched, photo, points, arguments, message):
    with pytest.raises(ConfigError, match=message):
        latents(untouched, photo, points, **arguments)


def test_a_scale_needs_a_channel():
    assert check_identity_scale(None, None).given == 0 and check_identity_scale(None, 0).given == 0
    for value in (0.5, [0.0, 1.0], {"down": 1.0}):
        with pytest.raises(ConfigError, match="no identity_channel"):
            check_identity_scale(None, value)
