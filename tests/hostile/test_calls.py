"""Arguments that no call can have, from habits of other programs: one typed error that names the argument."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, RePaintScheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from faceclip.errors import CheckpointError, ConfigError, FaceClipError, UnreadableImageError
from faceclip.faces import load_image
from makeup_plugin.calls.edit import read_edit
from makeup_plugin.calls.pictures import readable
from makeup_plugin.identities import Identity
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.regions import region_masks
from tests.makeup_plugin.calls import run
from tests.makeup_plugin.conftest import make_pipeline

META, SPARSE = torch.empty(3, 8, 8, device="meta"), torch.zeros(3, 8, 8).to_sparse()


def embeds(pipeline: FaceMakeUpPipeline, dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Any]:
    config = pipeline.unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    shapes = {"prompt_embeds": (1, 77, config.cross_attention_dim), "pooled_prompt_embeds": (1, pooled)}
    return {name: torch.zeros(shape, device=device).to(dtype) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def shared() -> FaceMakeUpPipeline:
    """A pipeline of which nothing but refusals is asked."""
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("prompt", {"prompt": {"a man", "a woman"}}),
        ("prompt", {"prompt": {"a man": 1}}),
        ("prompt", {"prompt": "a man \ud800"}),
        ("negative_prompt", {"negative_prompt": ["\udfff"]}),
        ("watermark", {"watermark": "no"}),
        ("allow_urls", {"allow_urls": "false"}),
        ("record_prompt", {"record_prompt": 1}),
        ("return_dict", {"return_dict": None}),
        ("face_policy", {"face_policy": None}),
        ("face_policy", {"face_policy": ["largest"]}),
        ("image", {"image": META}),
        ("image", {"image": SPARSE}),
        ("image", {"image": torch.zeros(3, 8, 8, dtype=torch.complex64)}),
        ("pose", {"pose": {"yaw": 30}}),
        ("latents", {"latents": torch.ones(1, 4, 8, 8, dtype=torch.complex64)}),
        ("latents", {"latents": torch.ones(1, 4, 8, 8, device="meta")}),
        ("callback_on_step_end", {"callback_on_step_end": lambda *_: [1]}),
        ("latents", {"callback_on_step_end": lambda *_: {"latents": "x"}}),
        ("latents", {"callback_on_step_end": lambda *_: {"latents": torch.zeros(1, 2)}}),
        ("prompt_embeds", {"callback_on_step_end": lambda *_: {"prompt_embeds": None}}),
        ("prompt_embeds", {"callback_on_step_end": lambda *_: {"prompt_embeds": torch.zeros(2, 77, 5)}}),
        ("prompt_embeds", {"callback_on_step_end": lambda *_: {"prompt_embeds": torch.zeros(0, 77, 20)}}),
        ("add_time_ids", {"callback_on_step_end": lambda *_: {"add_time_ids": torch.zeros(2, 3)}}),
        ("latents", {"callback_on_step_end": lambda *_: {"latents": torch.ones(1, 4, 16, 16, device="meta")}}),
    ],
)
def test_arguments_that_cannot_be_are_named(shared: FaceMakeUpPipeline, name: str, arguments: dict[str, Any]) -> None:
    if "latents" in arguments:
        side = shared.unet.config.sample_size
        arguments = {"latents": arguments["latents"].repeat(1, 1, side // 8, side // 8)}
    with pytest.raises(ConfigError, match=name):
        shared(**{"prompt": "a man", "num_inference_steps": 1, **arguments})


def test_embeddings_hold_all_of_their_numbers(pipeline: FaceMakeUpPipeline) -> None:
    for given in (embeds(pipeline, device="meta"), embeds(pipeline, torch.int64)):
        with pytest.raises(ConfigError, match="prompt_embeds"):
            pipeline(num_inference_steps=1, **given)
    eighth = pipeline(num_inference_steps=1, output_type="np", **embeds(pipeline, torch.float8_e4m3fn))
    assert np.isfinite(eighth.images).all()


def test_schedulers_that_do_not_denoise(pipeline: FaceMakeUpPipeline) -> None:
    kinds = {
        "RePaintScheduler needs original_image": RePaintScheduler(),
        "DDIMInverseScheduler": DDIMInverseScheduler(),
        "NoneType takes no steps": None,
    }
    for message, scheduler in kinds.items():
        pipeline.scheduler = scheduler
        with pytest.raises(ConfigError, match=f"scheduler: {message}"):
            run(pipeline, None, None)


def test_grey_of_32_bits_is_read_by_its_range() -> None:
    grey = np.arange(0, 256, 4, dtype=np.int32).reshape(8, 8)
    assert np.array_equal(load_image(Image.fromarray(grey))[..., 0], grey)
    assert np.array_equal(load_image(Image.fromarray(grey * 257))[..., 0], grey)
    for impossible in (grey - 1, grey * 1000):
        with pytest.raises(UnreadableImageError, match="grey values from"):
            load_image(Image.fromarray(impossible))


def test_masks_may_have_any_form_but_transparency(pipeline: FaceMakeUpPipeline) -> None:
    white = np.zeros((64, 64), bool)
    white[:32] = True
    grey = Image.fromarray(white.astype(np.uint8) * 255)
    forms = [white, torch.from_numpy(white)[None], torch.from_numpy(white)[None].float(), white[..., None] * 1.0]
    forms += [grey.convert(mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I")]
    picture = np.zeros((64, 64, 3), np.uint8)
    for form in forms:
        edit = read_edit(pipeline, picture, readable("mask_image", form), 1.0, height=None, width=None)
        assert np.array_equal(edit.mask[0, 0].bool().numpy(), white)
    for form in forms[4:]:
        assert np.array_equal(region_masks([form], 1, 64, 64)[0].bool().numpy(), white)
    clear = Image.merge("LA", (Image.new("L", (64, 64), 255), grey))  # white strokes on nothing
    with pytest.raises(UnreadableImageError, match=r"mask_image 0 .* transparent"):
        read_edit(pipeline, picture, clear, 1.0, height=None, width=None)
    with pytest.raises(UnreadableImageError, match=r"regions\[0\] is transparent"):
        region_masks([clear], 1, 64, 64)


@pytest.fixture
def identity(pipeline: FaceMakeUpPipeline, photo: np.ndarray, points: np.ndarray) -> Identity:
    return pipeline.encode_identity(photo, landmarks=points)


def test_identities_are_values(identity: Identity, tmp_path: Path) -> None:
    identity.save(tmp_path / "anna.safetensors")
    others = [
        copy.deepcopy(identity),
        pickle.loads(pickle.dumps(identity)),
        Identity.load(tmp_path / "anna.safetensors"),
    ]
    assert all(one == identity and hash(one) == hash(identity) for one in others)
    longer = Identity.mix([identity])
    assert identity in [None, longer, "anna"]
    changed = copy.deepcopy(identity)
    changed.features.identity.mul_(2)
    assert changed != identity


def test_facts_of_an_identity_are_numbers(identity: Identity, tmp_path: Path) -> None:
    path = tmp_path / "anna.safetensors"
    identity.save(path)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    metadata["facts"] = metadata["facts"].replace('"weight": 1.0', '"weight": NaN')
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=r"anna\.safetensors.*nan"):
        Identity.load(path)


@pytest.mark.parametrize("path", ["", None, 5])
def test_the_current_folder_is_not_meant_by_nothing(shared: FaceMakeUpPipeline, path: Any) -> None:
    for place in (FaceMakeUpPipeline.from_pretrained, shared.save_pretrained, shared.save_adapter, shared.load_adapter):
        with pytest.raises(ConfigError, match="must be a path"):
            place(path)
    with pytest.raises(ConfigError, match=r"^path must"):
        Identity.load(path)


@pytest.mark.parametrize("others", ["ab", [None], [3]])
def test_what_is_mixed_are_identities(identity: Identity, others: Any) -> None:
    with pytest.raises(ConfigError, match=r"identities\[1\]"):
        Identity.mix([identity, *others])


def test_a_pipeline_that_was_used_can_be_copied(pipeline: FaceMakeUpPipeline, photo, points) -> None:
    before = run(pipeline, photo, points)
    with pytest.raises(FaceClipError):
        pipeline("a man", np.zeros((64, 64, 3), np.uint8))  # the detector has read its networks
    other = copy.deepcopy(pipeline)
    assert np.array_equal(run(other, photo, points), before)
    other.unet.conv_out.weight.data.zero_()
    assert np.array_equal(run(pipeline, photo, points), before)


def test_a_call_after_one_that_was_stopped(pipeline: FaceMakeUpPipeline, photo, points) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = run(pipeline, photo, points)
    with pytest.raises(KeyboardInterrupt):
        run(pipeline, photo, points, callback_on_step_end=stop, identity_scale=0.5, guidance_scale=1.0)
    assert np.array_equal(run(pipeline, photo, points), before)
