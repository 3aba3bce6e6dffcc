"""Pipelines on plain text towers: SD 1.5 and SDXL bases draw what diffusers' own pipelines draw."""

import json
import logging

import numpy as np
import pytest
import torch

from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.plain_text import PlainText
from tests.makeup_plugin.bases import (
    KINDS,
    diffusers_pipeline,
    make_base,
    make_image_tower,
    make_recognizer,
    make_tokenizer,
)
from tests.makeup_plugin.conftest import make_channel

CALL = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}


def make_plain(kind: str, **parts) -> FaceMakeUpPipeline:
    zeros = kind == "sdxl"
    pipeline = FaceMakeUpPipeline(**make_base(kind), force_zeros_for_empty_prompt=zeros, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_personal(kind: str, **settings) -> FaceMakeUpPipeline:
    """With a perceiver that reads a zero image for nobody."""
    parts = make_base(kind)
    torch.manual_seed(31)
    channel = make_channel(parts["unet"], nobody="zero_image")
    pipeline = FaceMakeUpPipeline(
        **parts,
        identity_channel=channel,
        image_encoder=make_image_tower(),
        face_encoder=make_recognizer(),
        **settings,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("kind", "negative", "clip_skip"),
    [
        ("sd15", None, None),
        ("sd15", "ugly hat", None),
        ("sdxl", None, None),
        ("sdxl", "ugly hat", None),
        ("sdxl", None, 1),
    ],
)
def test_without_a_person_a_plain_base_draws_what_diffusers_draws(kind, negative, clip_skip) -> None:
    call = {**CALL, "prompt": ["a man", "an old woman"], "negative_prompt": negative, "clip_skip": clip_skip}
    wanted = diffusers_pipeline(kind)(
        **call | {"negative_prompt": negative and [negative] * 2}, generator=torch.manual_seed(0), return_dict=False
    )[0]
    found = make_plain(kind)(**call, generator=torch.manual_seed(0)).images
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_callback_may_return_what_it_was_shown_where_a_base_has_no_pooled_text() -> None:
    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    call = {**CALL, "prompt": "a man", "callback_on_step_end_tensor_inputs": names}
    wanted = make_plain("sd15")(**CALL, prompt="a man", generator=torch.manual_seed(0)).images
    found = make_plain("sd15")(
        **call, callback_on_step_end=lambda pipeline, index, timestep, shown: shown, generator=torch.manual_seed(0)
    ).images
    assert torch.equal(found, wanted)
    with pytest.raises(ConfigError, match="add_time_ids"):
        make_plain("sd15")(**call, callback_on_step_end=lambda *_: {"add_time_ids": torch.zeros(2, 6)})


@torch.no_grad()
def test_sd15_reads_an_earlier_layer_through_the_last_norm() -> None:
    """diffusers' own form of it does not run with transformers 5."""
    base = make_base("sd15")
    tower = base["text_encoder"]
    text = PlainText(tokenizers=[base["tokenizer"]], towers=[tower], clip_skip=1)
    ids = base["tokenizer"](["a man"], padding="max_length", return_tensors="pt").input_ids
    states = tower(ids, output_hidden_states=True).hidden_states
    norm = next(module for name, module in tower.named_modules() if name.endswith("final_layer_norm"))
    torch.testing.assert_close(text.encode(["a man"]).tokens, norm(states[-2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [-1, 2, 1.5])
def test_layers_that_a_tower_does_not_have_are_not_skipped(value) -> None:
    with pytest.raises(ConfigError, match=r"^clip_skip "):
        make_plain("sd15")("a man", clip_skip=value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_on_plain_text_is_saved_and_loaded_whole(kind, tmp_path, photo, points) -> None:
    pipeline = make_personal(kind, force_zeros_for_empty_prompt=kind == "sdxl", published={"kind": "test"})
    call = {**CALL, "prompt": "a man", "image": photo, "landmarks": points}
    wanted = pipeline(**call, generator=torch.manual_seed(0)).images
    pipeline.save_pretrained(tmp_path)
    loaded = FaceMakeUpPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(**call, generator=torch.manual_seed(0)).images, wanted)
    assert loaded.config.published == {"kind": "test"}
    assert loaded.config.force_zeros_for_empty_prompt is (kind == "sdxl")
    other = loaded(**call | {"image": 255 - photo}, generator=torch.manual_seed(0)).images
    assert (other - wanted).abs().max() > 1e-4
    weighed = loaded(**call, shortcut_scale=0.3, generator=torch.manual_seed(0)).images
    assert (weighed - wanted).abs().max() > 1e-4
    assert torch.equal(loaded(**call, generator=torch.manual_seed(0)).images, wanted)


def test_damaged_text_towers_are_refused(tmp_path) -> None:
    make_plain("sd15").save_pretrained(tmp_path)
    weights = tmp_path / "text_encoder" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"/text_encoder "):
        FaceMakeUpPipeline.from_pretrained(tmp_path)
    weights.write_bytes(whole)
    config = tmp_path / "text_encoder" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"/text_encoder .*missing_keys"):
        FaceMakeUpPipeline.from_pretrained(tmp_path)
    config.write_text(json.dumps(settings))
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"/tokenizer "):
        FaceMakeUpPipeline.from_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"text_encoder": ["transformers", "T5EncoderModel"]}))
    with pytest.raises(CheckpointError, match=r"text_encoder .*T5EncoderModel"):
        FaceMakeUpPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("absent", "named"),
    [
        ({"text_encoder": None, "tokenizer": None}, "joint_encoder"),
        ({"tokenizer": None}, "text_encoder and tokenizer"),
        ({"face_encoder": None}, "identity_channel .*face_encoder"),
        ({"image_encoder": None}, "identity_channel .*image_encoder"),
        ({"control_map": "edges"}, "control_map .*'edges'"),
    ],
)
def test_missing_parts_are_named(absent, named) -> None:
    parts = make_base("sd15")
    parts |= {"image_encoder": make_image_tower(), "face_encoder": make_recognizer()}
    parts["identity_channel"] = make_channel(parts["unet"])
    with pytest.raises(ConfigError, match=f"^{named}"):
        FaceMakeUpPipeline(**parts | absent)


def test_a_shortcut_that_does_not_exist_is_not_weighed(pipeline, photo, points) -> None:
    with pytest.raises(ConfigError, match=r"^shortcut_scale=0\.5"):
        make_plain("sd15")("a man", shortcut_scale=0.5)
    with pytest.raises(ConfigError, match=r"^shortcut_scale "):
        pipeline("a man", shortcut_scale=float("nan"))


def test_a_joint_encoder_takes_the_place_of_the_text_towers(base_parts) -> None:
    pipeline = FaceMakeUpPipeline(**{**make_base("sdxl"), **base_parts()})
    assert pipeline.text_encoder is None and pipeline.text_side is pipeline.joint_encoder


def test_long_texts_are_cut_with_a_warning(caplog) -> None:
    base = make_base("sd15")
    text = PlainText(tokenizers=[base["tokenizer"]], towers=[base["text_encoder"]])
    with caplog.at_level(logging.WARNING), torch.no_grad():
        found = text.encode(["word " * 40])
    assert "160 tokens" in caplog.text.replace("162", "160") and found.tokens.shape == (1, 77, 48)
    with pytest.raises(ConfigError, match="1 text encoders and 0 tokenizers"):
        PlainText(tokenizers=[], towers=[base["text_encoder"]])
    assert make_tokenizer("!").pad_token == "!"


@pytest.mark.parametrize("kind", KINDS)
def test_five_points_steer_a_control_channel(kind, photo, points) -> None:
    from makeup_plugin.shading import shading_channel_from_unet

    parts = make_base(kind)
    torch.manual_seed(33)
    control = shading_channel_from_unet(parts["unet"], vae_scale_factor=4)
    torch.nn.init.normal_(control.controlnet_mid_block.weight)
    channel = make_channel(parts["unet"], image_dim=None, form="resampler", normalized=False)
    pipeline = FaceMakeUpPipeline(
        **parts,
        identity_channel=channel,
        shading_channel=control,
        face_encoder=make_recognizer(),
        control_map="five_points",
    )
    pipeline.set_progress_bar_config(disable=True)
    call = {**CALL, "prompt": "a man", "image": photo, "landmarks": points}
    result = pipeline(**call, generator=torch.manual_seed(0))
    drawn = np.asarray(result.shading_maps[0])
    eye = (points[0] * 32 / 80).astype(int)
    assert tuple(drawn[eye[1], max(eye[0] - 9, 0)]) == (255, 0, 0)
    call |= {"shading_image": photo, "shading_landmarks": points + 20}
    moved = pipeline(**call, generator=torch.manual_seed(0))
    assert (moved.images - result.images).abs().max() > 1e-4
