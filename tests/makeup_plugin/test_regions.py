"""Several people in one picture: boxes and masks, whose face and text go where, and what does not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from faceclip.errors import ConfigError
from makeup_plugin.identities import Identity
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.regions import bounding_box, region_masks
from tests.makeup_plugin.calls import run

LEFT, RIGHT = (0, 0, 16, 32), (16, 0, 32, 32)


@pytest.fixture
def people(pipeline, photo, points) -> list[Identity]:
    photos = (photo, np.ascontiguousarray(255 - photo), photo // 3)
    return [pipeline.encode_identity(image, landmarks=points) for image in photos]


def latents(pipeline, **arguments) -> torch.Tensor:
    settings = {"num_inference_steps": 1, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipeline(**{"prompt": "a man", **settings, **arguments}).images


def test_one_person_everywhere_is_the_picture_of_that_person(pipeline, people):
    """But for the pooled text, which is the picture's, not the person's."""
    person, joint = people[0], pipeline.joint_encoder
    with torch.no_grad():
        text = joint.encode(["a man"], face_features=person.features).tokens
        pooled = joint.encode(["a man"]).pooled
    alone = latents(pipeline, prompt=None, identity=person, prompt_embeds=text, pooled_prompt_embeds=pooled)
    found = latents(pipeline, identity=[person], regions=[(0, 0, 32, 32)])
    torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)


def test_nested_lists_are_people_of_one_picture(pipeline, photo, points, people):
    other = np.ascontiguousarray(255 - photo)
    output = pipeline("a man", [[photo], [other, photo]], landmarks=[[points], [points, points]], num_inference_steps=1)
    assert len(output.images) == 1 and len(output.faces[0]) == 2 and output.provenance[0].has_reference_face
    flat = pipeline("a man", [photo, other], landmarks=[points, points], num_inference_steps=1)
    assert len(flat.images) == 2  # a flat list stays one picture each
    pair = latents(pipeline, image=[[photo], [other]], landmarks=[[points], [points]])
    assert torch.equal(pair, latents(pipeline, identity=people[:2], regions=[LEFT, RIGHT]))
    assert torch.equal(pair, latents(pipeline, image=[photo, other], landmarks=[points, points], regions=[LEFT, RIGHT]))
    assert not torch.equal(pair, latents(pipeline, identity=people[:2], regions=[RIGHT, LEFT]))


def test_maps_stand_in_their_regions(pipeline, people):
    output = pipeline("a man", identity=people[:2], regions=[LEFT, (20, 4, 32, 24)], num_inference_steps=1)
    shown = np.asarray(output.shading_maps[0]).astype(int)
    levels = [round(float(person.fit.shape[0, 0]) * 255) for person in people[:2]]
    assert shown[16, 8, 0] == levels[0] and shown[14, 26, 0] == levels[1]
    assert not shown[:, 16:20].any() and not shown[24:, 20:].any() and not shown[:4, 20:].any()


@pytest.fixture(scope="module")
def trained_base() -> FaceMakeUpPipeline:
    """The shipped pipeline: pictures that follow words."""
    pipeline = FaceMakeUpPipeline.from_pretrained("tiny", add_watermark=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_leakage_between_regions_on_renders(trained_base, photo, points):
    """What changes on the left when the text of the person on the right changes. Attention itself is exact
    (test_regional_attention); the UNet's own convolutions and self-attention carry some of it over. -s prints it."""
    side = trained_base.unet.config.sample_size * trained_base.vae_scale_factor
    people = [trained_base.encode_identity(photo, landmarks=points)] * 2

    def change(regions) -> tuple[float, float]:
        first, second = (
            trained_base(
                "a portrait",
                identity=people,
                regions=regions,
                region_prompts=["a man with red hair", f"a woman with {hair}"],
                identity_scale=0.0,
                shading_scale=0.0,
                num_inference_steps=8,
                guidance_scale=2.0,
                num_images_per_prompt=2,
                output_type="np",
                generator=torch.Generator().manual_seed(0),
            ).images
            for hair in ("black hair", "blond hair and glasses")
        )
        columns = np.abs(first - second).mean(axis=(0, 1, 3))
        return float(columns[: side // 2].mean()), float(columns[side // 2 :].mean())

    kept, changed = change([(0, 0, side // 2, side), (side // 2, 0, side, side)])
    print(f"mean change of pixels: {kept:.3f} where the person stays, {changed:.3f} where the text changes")
    assert kept < 0.6 * changed
    kept, changed = change([(0, 0, side, side)] * 2)  # without regions both sides change alike
    assert kept > 0.6 * changed


def test_people_are_weighed_one_by_one(pipeline, people):
    def run(*scales: float) -> torch.Tensor:
        return latents(
            pipeline, identity=people[:2], regions=[LEFT, RIGHT], identity_scale=list(scales), shading_scale=0
        )

    both, first = run(1, 1), run(1, 0)
    assert torch.equal(both, latents(pipeline, identity=people[:2], regions=[LEFT, RIGHT], shading_scale=0))
    change = (both - first).abs().mean(dim=(0, 1, 2))
    assert change[4:].mean() > change[:4].mean()


def test_groups_work_in_batches_and_without_channels(pipeline, base_parts, people, photo, points):
    arguments = {"identity": people[:2], "regions": [LEFT, RIGHT], "num_inference_steps": 1, "output_type": "np"}
    output = pipeline(["a man", "old woman"], num_images_per_prompt=2, **arguments)
    assert output.images.shape == (4, 32, 32, 3) and all(len(faces) == 2 for faces in output.faces)
    pipeline.unload_adapter()
    assert pipeline("a man", **arguments).images.shape == (1, 32, 32, 3)
    assert not any(type(one).__name__ == "RegionalAttention" for one in pipeline.unet.attn_processors.values())


def test_masks_of_all_kinds_agree():
    mask = np.zeros((24, 40), dtype=bool)
    mask[4:20, 8:30] = True
    kinds = [mask, mask.astype(np.uint8) * 255, mask.astype(np.float32), torch.from_numpy(mask), Image.fromarray(mask)]
    found = region_masks([*kinds, (8, 4, 30, 20)], 6, 24, 40)
    assert all(torch.equal(one, found[0]) for one in found) and bounding_box(found[0]) == (8, 4, 30, 20)
    assert region_masks(None, 3, 8, 24).sum(dim=0).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([LEFT], "regions: 2 people"),
        ([LEFT, RIGHT, LEFT], "regions: 2 people"),
        ([LEFT, np.zeros((16, 32), bool)], r"regions\[1\]: the mask is 16 × 32"),
        ([LEFT, np.zeros((32, 32), bool)], r"regions\[1\]: the mask is empty"),
        ([LEFT, np.full((32, 32), np.nan)], r"regions\[1\]: a mask of floating point"),
        ([LEFT, np.full((32, 32), 2.0)], r"regions\[1\]: a mask of floating point"),
        ([LEFT, np.ones((32, 32), int)], r"regions\[1\]: a mask must be bool"),
        ([LEFT, "right"], r"regions\[1\] must be a box"),
        ([LEFT, (0, 0, 40, 32)], r"regions\[1\]: the box"),
        ("left", "regions must be a list"),
    ],
)
def test_regions_that_do_not_fit_are_named(untouched, people, regions, message):
    with pytest.raises(ConfigError, match=message):
        latents(untouched, identity=people[:2], regions=regions)


def test_other_arguments_that_do_not_fit_people_are_named(pipeline, people, photo, points):
    pair = {"identity": people[:2], "regions": [LEFT, RIGHT]}
    for arguments, message in (
        ({"region_prompts": ["a", "b"]}, "region_prompts belong"),
        ({**pair, "region_prompts": ["a"]}, "region_prompts: 2 people"),
        ({**pair, "identity_scale": [1, 1, 1]}, "identity_scale: 2 people"),
        ({**pair, "shading_image": photo}, "shading_image"),
        ({**pair, "reference_placement": LEFT}, "reference_placement"),
        ({"regions": [LEFT]}, "regions need people"),
        (
            {
                **pair,
                "prompt": None,
                "prompt_embeds": torch.zeros(1, 77, 48),
                "pooled_prompt_embeds": torch.zeros(1, 24),
            },
            "region_prompts too",
        ),
        ({"image": [[photo], photo]}, r"image\[1\] must be a list"),
        ({"image": [[photo], []]}, r"image\[1\] is empty"),
        ({"image": [[photo], [photo]], "landmarks": [[points]]}, "landmarks: 2 people"),
        ({"image": [[photo], [None]], "landmarks": [[points], [points]]}, r"image\[1\] 0 is None"),
    ):
        with pytest.raises(ConfigError, match=message):
            latents(pipeline, **arguments)


def test_a_picture_without_people_is_as_before(pipeline, photo, points, people):
    wanted = run(pipeline, photo, points)
    latents(pipeline, identity=people[:2], regions=[LEFT, RIGHT])
    assert np.array_equal(run(pipeline, photo, points), wanted)
