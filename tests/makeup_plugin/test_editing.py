"""Pipelines that change an existing picture: what stays, what changes, and that diffusers' pipelines agree."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from faceclip.errors import ConfigError, NoFaceError, UnreadableImageError
from makeup_plugin import FaceMakeUpImg2ImgPipeline, FaceMakeUpInpaintPipeline, FaceMakeUpPipeline
from makeup_plugin.latents import encode_pixels
from makeup_plugin.marking import watermark
from tests.makeup_plugin.conftest import make_base

PLAIN = {"num_inference_steps": 4, "output_type": "np", "watermark": False}
KINDS = {
    FaceMakeUpImg2ImgPipeline: StableDiffusionXLImg2ImgPipeline,
    FaceMakeUpInpaintPipeline: StableDiffusionXLInpaintPipeline,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def parts() -> dict:
    return make_base()


@pytest.fixture
def mask() -> np.ndarray:
    """White in the lower right quarter of the photo."""
    pixels = np.zeros((80, 80), dtype=np.uint8)
    pixels[40:, 40:] = 255
    return pixels


def silent(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_draws_the_same_from_the_same_embeddings(parts, photo, mask, kind, scheduler, strength):
    base = {**parts, "scheduler": scheduler()}
    ours = silent(kind(**base, add_watermark=False))
    base.pop("joint_encoder")
    encoders = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    theirs = silent(KINDS[kind](**base, **encoders, add_watermarker=False))
    with torch.no_grad():
        text, nothing = (parts["joint_encoder"].encode([words]) for words in ("a man", "old"))
    arguments = {
        "prompt_embeds": text.tokens,
        "pooled_prompt_embeds": text.pooled,
        "negative_prompt_embeds": nothing.tokens,
        "negative_pooled_prompt_embeds": nothing.pooled,
        "image": Image.fromarray(photo),
        "strength": strength,
        "guidance_scale": 3.0,
        "num_inference_steps": 4,
        "output_type": "latent",
    }
    if kind is FaceMakeUpInpaintPipeline:
        arguments |= {"mask_image": Image.fromarray(mask), "height": 80, "width": 80}
    found = ours(**arguments, reference_image=[None], generator=seeded()).images
    wanted = theirs(**arguments, generator=seeded()).images
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_pixels_outside_of_the_mask_stay(pipeline, photo, points, mask):
    inpaint = silent(FaceMakeUpInpaintPipeline.from_pipe(pipeline))
    assert inpaint.unet is pipeline.unet
    output = inpaint("a woman", photo, mask, landmarks=points, generator=seeded(), num_inference_steps=2)
    (image,) = output.images
    found, white = np.asarray(image), mask > 0
    assert found.shape == photo.shape and np.array_equal(found[~white], photo[~white])
    assert (found[white] != photo[white]).any()
    assert output.provenance[0].settings["strength"] == 1.0
    named = output.provenance[0].watermark
    assert named == (watermark.METHOD if watermark.detect(found / 255) else None)
    arrays = inpaint("a woman", photo, mask, landmarks=points, **PLAIN).images
    assert np.array_equal(arrays[0][~white], (photo[~white] / 255).astype(np.float32))


def test_little_strength_keeps_the_picture(parts, photo):
    edit = silent(FaceMakeUpImg2ImgPipeline(**parts))

    with torch.no_grad():
        own = encode_pixels(edit.vae, torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1)

    def distance(strength):
        arguments = {"strength": strength, "reference_image": [None], "generator": seeded(), "num_inference_steps": 4}
        return float((edit("a man", photo, output_type="latent", **arguments).images - own).abs().mean())

    assert distance(0.25) < min(distance(0.5), distance(1.0))


def test_the_person_and_the_pose_are_those_of_the_picture(pipeline, photo, points):
    """Without a reference both come from the picture to edit; with one, the shape of the head is that person's."""
    edit = silent(FaceMakeUpImg2ImgPipeline.from_pipe(pipeline))
    own = edit("a man", photo, landmarks=points, **PLAIN)
    assert np.array_equal(own.faces[0].image, photo)
    dark = (photo // 4).astype(np.uint8)
    other = edit(
        "a man", photo, reference_image=dark, landmarks=points, shading_landmarks=points, generator=seeded(), **PLAIN
    )
    assert np.array_equal(other.faces[0].image, dark)
    red, green, _ = np.asarray(other.shading_maps[0])[0, 0]
    assert red == round(dark.mean()) and green == round(photo.mean())


def test_another_person_may_be_given_as_a_value(pipeline, photo, points):
    edit = silent(FaceMakeUpImg2ImgPipeline.from_pipe(pipeline))
    dark = (photo // 4).astype(np.uint8)
    identity = edit.encode_identity(dark, landmarks=points)
    arguments = {"shading_landmarks": points, **PLAIN}
    by_value = edit("a man", photo, identity=identity, generator=seeded(), **arguments)
    by_photo = edit("a man", photo, reference_image=dark, landmarks=points, generator=seeded(), **arguments)
    np.testing.assert_allclose(by_value.images, by_photo.images, atol=2e-5)
    with pytest.raises(ConfigError, match=r"^identity and reference_image"):
        edit("a man", photo, identity=identity, reference_image=dark, **PLAIN)


def test_landmarks_follow_the_size_of_the_result(pipeline, photo, points):
    edit = silent(FaceMakeUpImg2ImgPipeline.from_pipe(pipeline))
    large = np.asarray(Image.fromarray(photo).resize((160, 160), Image.Resampling.NEAREST))
    output = edit("a man", large, landmarks=points * 2, height=80, width=80, **PLAIN)
    np.testing.assert_allclose(output.faces[0].face.landmarks, points)
    assert output.images.shape == (1, 80, 80, 3)
    uneven = edit("a man", photo[:79, :78], landmarks=points, **PLAIN)
    assert uneven.images.shape == (1, 76, 76, 3)


def test_several_pictures_and_several_results(pipeline, photo, points):
    edit = silent(FaceMakeUpImg2ImgPipeline.from_pipe(pipeline))
    pair = [photo, photo[::-1].copy()]
    output = edit("a man", pair, landmarks=[points, points], num_images_per_prompt=2, generator=seeded(), **PLAIN)
    assert len(output.images) == 4 and len(output.faces) == 4
    generators = [seeded(1), seeded(2)]
    again = edit("a man", pair, landmarks=[points, points], generator=generators, **PLAIN)
    alone = edit("a man", pair[1], landmarks=points, generator=seeded(2), **PLAIN)
    np.testing.assert_allclose(again.images[1], alone.images[0], atol=2e-5)


def test_edits_go_over_into_each_other(pipeline):
    pipeline.licence = "L"
    inpaint = FaceMakeUpInpaintPipeline.from_pipe(FaceMakeUpImg2ImgPipeline.from_pipe(pipeline))
    assert inpaint.licence == "L" and inpaint.joint_encoder is pipeline.joint_encoder
    assert type(FaceMakeUpPipeline.from_pipe(inpaint)) is FaceMakeUpPipeline


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"image": None}, ConfigError, "^image "),
        ({"image": [None]}, ConfigError, "^image 0 "),
        ({"image": "gone.png"}, UnreadableImageError, r"^image 0 .*gone\.png"),
        ({"strength": 0}, ConfigError, "^strength .* 0$"),
        ({"strength": "a"}, ConfigError, "^strength .*'a'"),
        ({"strength": 0.1}, ConfigError, r"^strength=0\.1 "),
        ({"mask_image": None}, ConfigError, "^mask_image "),
        ({"mask_image": np.full((8, 8), 255, np.uint8)}, ConfigError, r"^mask_image 0 is 8×8 .*80×80"),
        ({"mask_image": np.zeros((80, 80), np.uint8)}, ConfigError, "^mask_image .*black"),
        ({"mask_image": [np.full((80, 80), 255, np.uint8)] * 3}, ConfigError, "^mask_image: 3 "),
        ({"height": 30}, ConfigError, "^height .*30x80"),
        ({"num_images": 2}, TypeError, "num_images"),
        ({"reference_image": np.full((80, 80, 3), 99, np.uint8)}, NoFaceError, "image 0"),
    ],
)
def test_impossible_edits_are_named(parts, photo, mask, arguments, error, message):
    inpaint = silent(FaceMakeUpInpaintPipeline(**parts))
    given = {"image": photo, "mask_image": mask, "reference_image": [None], **PLAIN, **arguments}
    with pytest.raises(error, match=message):
        inpaint("a man", **given)


def test_bases_made_for_inpainting_are_refused(parts, unet_factory, photo, mask):
    inpaint = silent(FaceMakeUpInpaintPipeline(**{**parts, "unet": unet_factory(in_channels=9)}))
    with pytest.raises(ConfigError, match=r"^unet reads 9 channels"):
        inpaint("a man", photo, mask, reference_image=[None], **PLAIN)
