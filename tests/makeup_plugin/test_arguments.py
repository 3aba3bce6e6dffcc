"""What a call rejects or warns of: pictures, landmarks, channels that are absent, arguments that exclude each other."""

import numpy as np
import pytest
import torch
from PIL import Image

from faceclip.errors import BadLandmarksError, ConfigError, NoFaceError, UnreadableImageError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.references import prepare_references
from tests.makeup_plugin.calls import PLAIN, group_photo, seeded


def test_pictures_without_a_face_are_named(pipeline, photo):
    grey = np.full((80, 80, 3), 128, dtype=np.uint8)
    with pytest.raises(NoFaceError, match=r"image 1 \(image array"):
        pipeline(["a", "b"], [None, grey], **PLAIN)
    with pytest.raises(UnreadableImageError, match=r"^image 0 .*nowhere\.png"):
        pipeline("a", "nowhere.png", **PLAIN)


def test_landmarks_that_are_no_face_are_refused(photo, points):
    """What would be cut by them is no face, and nothing later could tell."""
    tall = np.zeros((160, 80, 3), dtype=np.uint8)
    for image, wrong, message in (
        (photo, np.full((5, 2), np.nan), "five finite points"),
        (photo, [[1, 2], [3, 4], [5, 6], [7, 8], [9]], "lists of unequal length"),
        (photo, points[:4], r"got shape \(4, 2\)"),
        (photo, points + 200, "outside of 80×80: give pixels"),
        (photo, points + np.array([70, 0]), "outside of 80×80"),
        (tall, points - np.array([0, 60]), "outside of 80×160"),
        (photo, points / 80, r" px .*\b12: .* px"),
        (photo, points[:, ::-1], "no face's eyes, nose tip and mouth corners"),
        (photo, points[[1, 0, 2, 4, 3]], "no face's eyes"),
        (photo, points * 0 + 40, "no face's eyes"),
    ):
        with pytest.raises(BadLandmarksError, match=rf"image 1 \(image array.*{message}"):
            prepare_references([None, image], landmarks=[None, wrong])
    references = prepare_references([None, photo], landmarks=[None, points - np.array([25, 0])])  # cut by the border
    assert references.faces[1] is not None
    with pytest.raises(ConfigError, match=r"^landmarks: 1 images .* 5$"):
        prepare_references(photo, landmarks=[[1, 2], [3, 4], [5, 6], [7, 8], [9]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "^prompt "),
        ({"prompt": None}, "^prompt "),
        ({"negative_prompt": [None]}, "^negative_prompt "),
        ({"image": np.zeros((8, 8, 3)), "landmarks": []}, "^landmarks .*list"),
        ({"image": np.zeros((8, 8, 3)), "landmarks": 5}, r"^landmarks .*\(5, 2\)"),
        ({"landmarks": np.zeros((5, 2))}, r"^landmarks .*\bimage: "),
        ({"shading_landmarks": np.zeros((5, 2))}, "^shading_landmarks .*shading_image: "),
        ({"prompt": ["a", "b", "c"], "image": [None, None]}, r"^image: 2 images .*\b3 prompts"),
        ({"image": []}, "^image .*list"),
        ({"image": np.zeros((0, 8, 8, 3))}, "^image .*list"),
        ({"shading_image": []}, "^shading_image .*list"),
        ({"shading_image": [None, None]}, r"^shading_image: 2 .*\b1 prompts"),
        ({"num_inference_steps": 0}, r"^num_inference_steps .*\b1 .* 0$"),
        ({"output_type": "jpeg"}, "^output_type .*pil, np, pt, latent, .*'jpeg'"),
        ({"num_inference_steps": 2.5}, r"^num_inference_steps .* 2\.5"),
        ({"num_inference_steps": 2000}, "^num_inference_steps=2000 .*DDIMScheduler"),
        ({"num_images_per_prompt": "2"}, "^num_images_per_prompt .*'2'"),
        ({"height": 30}, r"\b4, .*30x32"),
        ({"height": 64.0}, r"^height .* 64\.0"),
        ({"generator": [torch.Generator()] * 2}, "^1 images .*1 generators.* 2$"),
        ({"generator": 3}, r"^generator .*torch\.Generator .* 3: "),
        ({"generator": [3]}, r"^generator .*torch\.Generator .* \[3\]"),
        ({"identity_scale": float("nan")}, "^identity_scale .* nan"),
        ({"identity_scale": "a"}, "^identity_scale .*'a'"),
        ({"shading_scale": float("inf")}, "^shading_scale .* inf"),
        ({"guidance_scale": float("nan")}, "^guidance_scale .* nan"),
        ({"guidance_scale": "2"}, "^guidance_scale .*'2'"),
        ({"callback_on_step_end": "x"}, r"^callback_on_step_end .*'x'"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, r"^latents .*\(1, 4, 8, 8\), .*\(1, 4, 4, 4\)"),
        ({"latents": np.zeros((1, 4, 8, 8))}, r"^latents .*\(1, 4, 8, 8\), .*ndarray"),
        ({"negative_prompt": ["a", "b"]}, r"^negative_prompt: 2 .*\b1 images"),
        ({"prompt": list("abcd"), "negative_prompt": ["a", "b"]}, r"^negative_prompt: 2 .*\b4 images"),
        (
            {"prompt": ["a", "b"], "num_images_per_prompt": 4, "negative_prompt": list("abcd")},
            r"^negative_prompt: 4 .*\b8 images .*\b2 prompts",
        ),
        (
            {"callback_on_step_end_tensor_inputs": ["noise"]},
            r"^callback_on_step_end_tensor_inputs: \['noise'\] .*'latents'",
        ),
        (
            {"shading_image": "a.png", "shading_map": "b.png"},
            "shading_image and shading_map exclude each other",
        ),
    ],
)
def test_impossible_arguments_are_named(untouched, arguments, message):
    with pytest.raises(ConfigError, match=message):
        untouched(**{"prompt": "a man", **PLAIN, **arguments})


def test_errors_say_which_argument_a_picture_came_by(pipeline, tmp_path):
    grey = Image.new("RGB", (64, 64), "gray")
    with pytest.raises(NoFaceError, match=r"shading_image 0 \(PIL image"):
        pipeline("a man", group_photo(), shading_image=grey, **PLAIN)
    with pytest.raises(NoFaceError, match=r"in image 0 \(PIL image"):
        pipeline("a man", grey, **PLAIN)
    with pytest.raises(UnreadableImageError, match=r"^shading_map 1 \(image file '.*gone\.png'\)"):
        pipeline(["a", "b"], shading_map=[None, tmp_path / "gone.png"], **PLAIN)


def test_words_that_are_not_read_are_told(pipeline, caplog):
    pipeline("a man with a hat " * 20 + "and round glasses", **PLAIN)
    (record,) = [record for record in caplog.records if record.name == "faceclip.towers.inputs"]
    assert "prompt 0 has more than 77 tokens; not read: " in record.getMessage()
    assert record.getMessage().endswith("and round glasses'")


def test_what_is_no_image_is_told_by_its_position(pipeline):
    with pytest.raises(UnreadableImageError, match=r"^image 1 \(image of type int\): "):
        pipeline(["a man", "a man"], [None, 3], **PLAIN)


def test_negative_prompts_for_prompts_or_for_images(pipeline):
    def run(negative):
        return pipeline(
            ["a man", "a woman"], negative_prompt=negative, num_images_per_prompt=2, generator=seeded(), **PLAIN
        ).images

    assert np.array_equal(run(["old", "young"]), run(["old", "old", "young", "young"]))
    assert np.array_equal(run(["old"]), run(["old"] * 4))
    assert not np.array_equal(run(["old", "young"]), run(["old"]))


def test_absent_channels_are_not_ignored_silently(base_parts, photo, points):
    base = FaceMakeUpPipeline(**base_parts())
    for arguments, message in (
        ({"identity_scale": 0.5}, r"\bidentity_channel\b"),
        ({"shading_scale": 0.5}, r"\bshading_channel\b"),
        ({"shading_image": photo}, r"\bshading_channel\b"),
    ):
        with pytest.raises(ConfigError, match=message):
            base("a man", photo, landmarks=points, **PLAIN, **arguments)


def test_a_map_is_needed_where_nothing_can_fit_one(pipeline, photo, points, monkeypatch):
    monkeypatch.setattr("makeup_plugin.face_side.is_installed", lambda: False)
    pipeline.register_modules(face_fitter=None)
    with pytest.raises(ConfigError, match=r"shading_map, .*shading_scale=0"):
        pipeline("a man", photo, landmarks=points, **PLAIN)
    assert pipeline("a man", photo, landmarks=points, shading_scale=0, **PLAIN).shading_maps == [None]


def test_parts_that_need_each_other(pipeline, base_parts):
    with pytest.raises(ConfigError, match=r"identity_channel .*image_encoder"):
        FaceMakeUpPipeline(**base_parts(), identity_channel=pipeline.identity_channel)
    with pytest.raises(ConfigError, match=r"^shading_channel .*identity_channel"):
        FaceMakeUpPipeline(**base_parts(), shading_channel=pipeline.shading_channel)
