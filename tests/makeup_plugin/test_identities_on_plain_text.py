"""Identities and several people on bases with plain text, whose people come in by the identity channel alone."""

import numpy as np
import pytest
import torch

from faceclip.errors import ConfigError
from makeup_plugin.identities import Identity
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.shading import shading_channel_from_unet
from tests.makeup_plugin.bases import KINDS, make_base, make_image_tower, make_recognizer
from tests.makeup_plugin.conftest import make_channel

LEFT, RIGHT = (0, 0, 16, 32), (16, 0, 32, 32)


def make(kind: str, form: str) -> FaceMakeUpPipeline:
    """InstantID's parts (a resampler, five points) or Face-MakeUp's (a perceiver, a zero image for nobody)."""
    parts = make_base(kind)
    torch.manual_seed(33)
    if form == "perceiver":
        parts |= {
            "image_encoder": make_image_tower(),
            "identity_channel": make_channel(parts["unet"], nobody="zero_image"),
        }
    else:
        channel = make_channel(parts["unet"], image_dim=None, form="resampler", normalized=False)
        control = shading_channel_from_unet(parts["unet"], vae_scale_factor=4)
        torch.nn.init.normal_(control.controlnet_mid_block.weight)
        parts |= {"identity_channel": channel, "shading_channel": control, "control_map": "five_points"}
    pipeline = FaceMakeUpPipeline(**parts, face_encoder=make_recognizer())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: FaceMakeUpPipeline, **arguments):
    settings = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
    return pipeline("a man", generator=torch.manual_seed(0), **settings, **arguments)


@pytest.mark.parametrize("form", ["perceiver", "resampler"])
@pytest.mark.parametrize("kind", KINDS)
def test_identities_and_groups(kind, form, photo, points):
    pipeline = make(kind, form)
    other = np.ascontiguousarray(255 - photo)
    people = [pipeline.encode_identity(image, landmarks=points) for image in (photo, other)]
    assert (people[0].image_tokens is None) == (form == "resampler")
    wanted = draw(pipeline, image=photo, landmarks=points)
    assert torch.equal(draw(pipeline, identity=people[0]).images, wanted.images)
    pair = draw(pipeline, identity=people, regions=[LEFT, RIGHT])
    assert not torch.equal(pair.images, draw(pipeline, identity=people[::-1], regions=[LEFT, RIGHT]).images)
    # Where the text knows nobody, one person everywhere is exactly the picture of that person.
    alone = draw(pipeline, identity=people[:1], regions=[(0, 0, 32, 32)])
    torch.testing.assert_close(alone.images, wanted.images, atol=2e-5, rtol=1e-4)
    if form == "resampler":
        shown = np.asarray(pair.shading_maps[0])
        assert shown[:, :16].any() and shown[:, 16:].any()
        with pytest.raises(ConfigError, match="mixture"):
            draw(pipeline, identity=Identity.mix(people))
