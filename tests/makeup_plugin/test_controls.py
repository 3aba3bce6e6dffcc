"""Further ControlNets beside the shading channel, as diffusers' own pipeline runs them."""

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, MultiControlNetModel, StableDiffusionXLControlNetPipeline
from PIL import Image
from torch import nn

from faceclip.errors import ConfigError, UnreadableImageError
from makeup_plugin import FaceMakeUpImg2ImgPipeline, FaceMakeUpPipeline
from tests.makeup_plugin.conftest import make_base, make_unet

PLAIN = {"num_inference_steps": 4, "output_type": "np", "watermark": False}


def make_controlnet(seed: int) -> ControlNetModel:
    """One that says something."""
    torch.manual_seed(seed)
    network = ControlNetModel.from_unet(make_unet(), conditioning_embedding_out_channels=(16, 32, 64)).eval()
    for module in (network.controlnet_mid_block, network.controlnet_cond_embedding.conv_out):
        nn.init.normal_(module.weight, std=0.3)
    return network


@pytest.fixture(scope="module")
def parts() -> dict:
    return make_base()


@pytest.fixture(scope="module")
def networks() -> list[ControlNetModel]:
    return [make_controlnet(11), make_controlnet(12)]


@pytest.fixture
def edges() -> Image.Image:
    return Image.fromarray(np.random.default_rng(5).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def silent(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, **arguments):
    return pipeline(generator=torch.Generator().manual_seed(0), **{**PLAIN, **arguments}).images


@pytest.mark.parametrize(
    ("several", "arguments"),
    [
        (False, {}),
        (False, {"controlnet_conditioning_scale": 0.4, "control_guidance_start": 0.25, "control_guidance_end": 0.75}),
        (False, {"guidance_scale": 1.0, "num_images_per_prompt": 2}),
        (True, {"controlnet_conditioning_scale": [0.5, 1.0], "control_guidance_end": [0.5, 1.0]}),
    ],
)
def test_diffusers_draws_the_same_from_the_same_embeddings(parts, networks, edges, several, arguments):
    controlnet = networks if several else networks[0]
    ours = silent(FaceMakeUpPipeline(**parts, controlnet=controlnet, add_watermark=False))
    base = {name: parts[name] for name in ("unet", "vae")}
    encoders = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    theirs = silent(
        StableDiffusionXLControlNetPipeline(
            **base, **encoders, scheduler=DDIMScheduler(), controlnet=controlnet, add_watermarker=False
        )
    )
    with torch.no_grad():
        text, nothing = (parts["joint_encoder"].encode([words]) for words in ("a man", "old"))
    picture = [edges, edges.transpose(Image.Transpose.ROTATE_90)] if several else edges
    given = {
        "prompt_embeds": text.tokens,
        "pooled_prompt_embeds": text.pooled,
        "negative_prompt_embeds": nothing.tokens,
        "negative_pooled_prompt_embeds": nothing.pooled,
        "guidance_scale": 3.0,
        "output_type": "latent",
        **arguments,
    }
    found = draw(ours, control_image=picture, **given)
    wanted = theirs(
        image=picture, generator=torch.Generator().manual_seed(0), **{"num_inference_steps": 4, **given}
    ).images
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (found - draw(ours, **given)).abs().max() > 1e-3


def test_it_works_beside_the_shading_channel_and_in_edits(pipeline, networks, edges, photo, points):
    controlled = silent(FaceMakeUpPipeline.from_pipe(pipeline, controlnet=networks[0]))
    arguments = {"prompt": "a man", "image": photo, "landmarks": points}
    plain = draw(pipeline, **arguments)
    assert np.array_equal(draw(controlled, **arguments), plain)
    assert np.array_equal(draw(controlled, **arguments, control_image=edges, controlnet_conditioning_scale=0), plain)
    both = draw(controlled, **arguments, control_image=edges)
    alone = draw(controlled, **arguments, control_image=edges, shading_scale=0)
    assert len({images.tobytes() for images in (plain, both, alone)}) == 3
    edit = silent(FaceMakeUpImg2ImgPipeline.from_pipe(controlled))
    assert not np.array_equal(draw(edit, **arguments, control_image=edges), draw(edit, **arguments))


def test_pictures_are_resized_and_may_differ_by_prompt(parts, networks, edges):
    ours = silent(FaceMakeUpPipeline(**parts, controlnet=networks[0], add_watermark=False))
    turned = edges.transpose(Image.Transpose.ROTATE_90)
    both = draw(ours, prompt=["a man"] * 2, control_image=[edges, turned], latents=torch.ones(2, 4, 8, 8))
    alone = draw(ours, prompt="a man", control_image=turned, latents=torch.ones(1, 4, 8, 8))
    np.testing.assert_allclose(both[1], alone[0], atol=2e-5)
    large = edges.resize((64, 64), Image.Resampling.NEAREST)
    assert draw(ours, prompt="a man", control_image=large).shape == (1, 32, 32, 3)


def test_a_controlnet_is_saved_and_loaded(parts, networks, edges, tmp_path):
    ours = silent(FaceMakeUpPipeline(**parts, controlnet=networks[0]))
    ours.save_pretrained(tmp_path)
    again = silent(FaceMakeUpPipeline.from_pretrained(tmp_path))
    arguments = {"prompt": "a man", "control_image": edges}
    assert np.array_equal(draw(again, **arguments), draw(ours, **arguments))
    several = FaceMakeUpPipeline(**parts, controlnet=networks)
    assert isinstance(several.controlnet, MultiControlNetModel)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"control_image": "gone.png"}, UnreadableImageError, r"^control_image 0 .*gone\.png"),
        ({"control_image": [None]}, ConfigError, "^control_image 0 "),
        ({"control_image": []}, ConfigError, "^control_image "),
        ({"control_image": [np.zeros((8, 8, 3))] * 2}, ConfigError, "^control_image: 2 "),
        ({"controlnet_conditioning_scale": [1.0, 1.0]}, ConfigError, "^controlnet_conditioning_scale: 2 "),
        ({"controlnet_conditioning_scale": "a"}, ConfigError, "^controlnet_conditioning_scale .*'a'"),
        ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, ConfigError, "^control_guidance_start .*0.5"),
    ],
)
def test_impossible_controls_are_named(parts, networks, edges, arguments, error, message):
    ours = silent(FaceMakeUpPipeline(**parts, controlnet=networks[0]))
    with pytest.raises(error, match=message):
        draw(ours, prompt="a man", **{"control_image": edges, **arguments})


def test_controlnets_that_do_not_belong_are_refused(parts, networks, edges):
    with pytest.raises(ConfigError, match=r"^control_image: .*from_pipe"):
        draw(silent(FaceMakeUpPipeline(**parts)), prompt="a man", control_image=edges)
    other = ControlNetModel.from_unet(make_unet(cross_attention_dim=24))
    with pytest.raises(ConfigError, match=r"^controlnet: .*cross_attention_dim .*24.*48"):
        FaceMakeUpPipeline(**parts, controlnet=other)
    with pytest.raises(ConfigError, match=r"^controlnet .*UNet2DConditionModel"):
        FaceMakeUpPipeline(**parts, controlnet=[parts["unet"]])
    several = silent(FaceMakeUpPipeline(**parts, controlnet=networks))
    with pytest.raises(ConfigError, match=r"^control_image: 1 entries .*\b2 "):
        draw(several, prompt="a man", control_image=edges)
