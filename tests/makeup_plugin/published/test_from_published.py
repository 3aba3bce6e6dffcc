"""Published weights draw with one line, and what they draw equals the published formulae."""

import json
import logging
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from faceclip.errors import CheckpointError, ConfigError
from faceclip.published import convert
from makeup_plugin.conditioning import Conditions, predict
from makeup_plugin.identities import Identity
from makeup_plugin.image_tokens import nobody_tokens
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.published.kinds import KINDS, LICENCES
from tests.faceclip.published_case import CONFIG as FACECLIP_CONFIG
from tests.faceclip.published_case import published_state
from tests.makeup_plugin.conftest import make_unet
from tests.makeup_plugin.published.layouts import (
    CASES,
    CONTROLLED,
    GOLDEN,
    GUIDANCE,
    NEGATIVE,
    POINTS,
    PROMPT,
    STEPS,
    adapter_state,
    filled_base,
    filled_control,
    filled_recognizer,
    filled_tower,
    first_noise,
    photo,
    unet_inputs,
)


@cache
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Both bases as folders in diffusers' layout."""
    folders = {}
    for form in ("sd15", "sdxl"):
        folders[form] = tmp_path_factory.mktemp(form)
        FaceMakeUpPipeline(**filled_base(form)).save_pretrained(folders[form])
    return folders


def write_adapter(case: str, folder: Path) -> Path:
    """The published file of a case, and InstantID's ControlNet beside it."""
    unet = filled_base(CASES[case][1])["unet"]
    path = folder / "adapter.bin"
    torch.save(adapter_state(case, unet), path)
    if case == "instantid":
        filled_control(unet).save_pretrained(folder / "ControlNetModel")
    return path


def make(case: str, bases, folder: Path, **changes) -> FaceMakeUpPipeline:
    kind, form = CASES[case]
    parts = {"base": bases[form], "face_encoder": filled_recognizer()}
    if not case.startswith(("faceid", "instantid")):
        parts["image_encoder"] = filled_tower()
    pipeline = FaceMakeUpPipeline.from_published(kind, write_adapter(case, folder), **parts | changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def call(pipeline: FaceMakeUpPipeline, **changes) -> torch.Tensor:
    settings = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "image": photo(),
        "landmarks": POINTS,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "latents": first_noise(),
        "output_type": "latent",
        "height": 32,
        "width": 32,
    }
    return pipeline(**settings | changes).images


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_published_weights_draw_what_their_authors_classes_draw(case, bases, tmp_path) -> None:
    """The UNet's output and the latents after several steps of the whole pipeline."""
    pipeline = make(case, bases, tmp_path)
    given, channel = unet_inputs(CASES[case][1]), pipeline.identity_channel
    reads_image = channel.reads_image
    conditions = Conditions(
        tokens=given["text"],
        pooled=given.get("pooled"),
        time_ids=given.get("time_ids"),
        identity=given["identity"],
        image_tokens=given["image_tokens"] if reads_image else None,
        shading=given["map"] if case in CONTROLLED else None,
    )
    tokens = channel(conditions.identity, conditions.image_tokens)
    torch.testing.assert_close(tokens, golden()[f"{case}.tokens"], atol=1e-5, rtol=0)
    output = predict(
        pipeline.unet,
        given["latents"],
        given["timesteps"],
        conditions,
        identity_channel=channel,
        shading_channel=pipeline.shading_channel,
    )
    torch.testing.assert_close(output, golden()[f"{case}.unet"], atol=1e-5, rtol=0)
    wanted = golden()[f"{case}.latents"]
    torch.testing.assert_close(call(pipeline), wanted, atol=1e-4, rtol=0)
    assert (call(pipeline, image=255 - photo()) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("case", ["faceid_sd15", "plusv2_sd15", "faceid_sdxl"])
@torch.no_grad()
def test_diffusers_own_loader_draws_the_same(case, bases, tmp_path) -> None:
    form = CASES[case][1]
    ours = make(case, bases, tmp_path)
    kind = StableDiffusionPipeline if form == "sd15" else StableDiffusionXLPipeline
    extra = {"safety_checker": None, "feature_extractor": None} if form == "sd15" else {"add_watermarker": False}
    theirs = kind(**filled_base(form), **extra)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_ip_adapter(str(tmp_path), subfolder=None, weight_name="adapter.bin", image_encoder_folder=None)
    theirs.set_ip_adapter_scale(1.0)
    identity = ours.encode_identity([photo()], landmarks=[POINTS])
    embedding = torch.nn.functional.normalize(identity.features.identity, dim=-1)
    if case.startswith("plus"):
        projection = theirs.unet.encoder_hid_proj.image_projection_layers[0]
        projection.shortcut = True
        nobody = nobody_tokens(ours.image_encoder)
        projection.clip_embeds = torch.stack([nobody, identity.image_tokens[0]])[:, None]
    embeddings = torch.stack([torch.zeros_like(embedding), embedding])  # (2, 1, identity)
    wanted = theirs(
        PROMPT,
        negative_prompt=NEGATIVE,
        ip_adapter_image_embeds=[embeddings],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=first_noise(),
        height=32,
        width=32,
        output_type="latent",
    ).images
    torch.testing.assert_close(call(ours), wanted, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_published_pipeline_is_saved_and_loaded(bases, tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        pipeline = make("facemakeup", bases, tmp_path)
    assert "licence: not stated" in caplog.text
    wanted = call(pipeline)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = FaceMakeUpPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(call(loaded), wanted)
    record = {"kind": "facemakeup-v1", "weights": "adapter.bin", "revision": "", "licence": LICENCES["facemakeup-v1"]}
    assert loaded.config.published == record and loaded.config.control_map == "five_points"
    assert json.loads((tmp_path / "saved" / "adapter.json").read_text())["licence"] == "not stated"
    assert str(tmp_path) not in (tmp_path / "saved" / "model_index.json").read_text()
    identity = loaded.encode_identity([photo()], landmarks=[POINTS])
    given = {"image": None, "landmarks": None}
    torch.testing.assert_close(call(loaded, **given, identity=identity), wanted, atol=1e-4, rtol=0)
    mixed = Identity.mix([identity, identity], [0.5, 0.5])
    with pytest.raises(ConfigError, match=r"^identity .*shading_map"):
        call(loaded, **given, identity=mixed)


@pytest.mark.parametrize("case", ["faceid_sd15", "instantid"])
def test_hub_ids_are_read_from_the_hubs_cache(case, bases, tmp_path, monkeypatch) -> None:
    """Weights and base lie where the hub's client keeps downloads; nothing is asked for over a network."""
    kind, form = CASES[case]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    commits = {"owner/weights": "1" * 40, "owner/base": "2" * 40}
    for name, commit in commits.items():
        place = tmp_path / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text(commit)
    snapshots = {name: tmp_path / f"models--{name.replace('/', '--')}/snapshots/{c}" for name, c in commits.items()}
    snapshots["owner/base"].parent.mkdir()
    shutil.copytree(bases[form], snapshots["owner/base"])
    snapshots["owner/weights"].mkdir(parents=True)
    file = write_adapter(case, snapshots["owner/weights"])
    file.rename(file.with_name(KINDS[kind].files[form]))
    pipeline = FaceMakeUpPipeline.from_published(
        kind, "owner/weights", base="owner/base", face_encoder=filled_recognizer()
    )
    assert pipeline.config.published["weights"] == "owner/weights" and pipeline.base_model == "owner/base"
    assert pipeline.config.published["revision"] == commits["owner/weights"]
    pipeline.set_progress_bar_config(disable=True)
    local = tmp_path / "snapshots" / "mine"  # a folder of the user's, whatever its name
    local.mkdir(parents=True)
    same = make(case, bases, local)
    assert torch.equal(call(pipeline), call(same)) and not same.config.published["revision"]
    with pytest.raises(CheckpointError, match="owner/other"):
        FaceMakeUpPipeline.from_published(kind, "owner/other", base="owner/base", face_encoder=filled_recognizer())


def kohya(state: dict[str, torch.Tensor], layers: list[str], alpha: float) -> dict[str, torch.Tensor]:
    """The LoRA of a published file under kohya's names, scaled so that it does the same."""
    found = {}
    for name, value in state.items():
        if "_lora." in name:
            index, projection, side, _ = name.split(".")
            kind = projection.removesuffix("_lora").replace("to_out", "to_out_0")
            layer = layers[int(index)].removesuffix(".processor").replace(".", "_")
            scaled = value * (len(state["0.to_q_lora.down.weight"]) / alpha if side == "up" else 1)
            found[f"lora_unet_{layer}_{kind}.lora_{side}.weight"] = scaled.contiguous()
            found[f"lora_unet_{layer}_{kind}.alpha"] = torch.tensor(alpha)
    return found


@torch.no_grad()
def test_the_lora_is_that_of_the_file_or_none_or_another_file(bases, tmp_path) -> None:
    wanted = call(make("faceid_sd15", bases, tmp_path))
    without = call(make("faceid_sd15", bases, tmp_path, lora=False))
    assert (without - wanted).abs().max() > 1e-3
    unet = filled_base("sd15")["unet"]
    state = adapter_state("faceid_sd15", unet)["ip_adapter"]
    path = tmp_path / "lora.safetensors"
    save_file(kohya(state, list(unet.attn_processors), 8.0), path)
    torch.testing.assert_close(call(make("faceid_sd15", bases, tmp_path, lora=path)), wanted, atol=1e-4, rtol=0)
    save_file({"lora_unet_strange.lora_down.weight": torch.ones(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r"/lora\.safetensors"):
        make("faceid_sd15", bases, tmp_path, lora=path)


@torch.no_grad()
def test_the_shortcut_is_an_argument(bases, tmp_path) -> None:
    torch.testing.assert_close(
        call(make("plusv2_sd15", bases, tmp_path, shortcut=False)), golden()["plus_sd15.latents"], atol=1e-4, rtol=0
    )
    pipeline = make("plusv2_sd15", bases, tmp_path)
    assert (call(pipeline, shortcut_scale=0.5) - golden()["plusv2_sd15.latents"]).abs().max() > 1e-3


@torch.no_grad()
def test_faceclip_is_one_line(bases, tmp_path) -> None:
    torch.save(published_state(), tmp_path / "face_clip_encoder.pt")
    convert(tmp_path / "face_clip_encoder.pt", tmp_path / "encoder", config=FACECLIP_CONFIG)
    width = FACECLIP_CONFIG["text_l"]["width"] + FACECLIP_CONFIG["text_g"]["width"]
    pooled = FACECLIP_CONFIG["text_g"]["width"]
    unet = make_unet(cross_attention_dim=width, projection_class_embeddings_input_dim=6 * 8 + pooled)
    unet.save_pretrained(tmp_path / "unet")
    pipeline = FaceMakeUpPipeline.from_published(
        "faceclip-sdxl", tmp_path / "encoder", base=bases["sdxl"], unet=tmp_path / "unet"
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.licence == "CC-BY-NC-4.0" and pipeline.config.published["kind"] == "faceclip-sdxl"
    result, other = call(pipeline), call(pipeline, image=255 - photo())
    assert torch.isfinite(result).all() and (result - other).abs().max() > 1e-4
    with pytest.raises(ConfigError, match=r"^face_encoder .*faceclip-sdxl"):
        FaceMakeUpPipeline.from_published("faceclip-sdxl", tmp_path, base=bases["sdxl"], face_encoder="tiny/recognizer")


WRONG = {
    "kind": ({"kind": "photomaker"}, ConfigError, "^kind .*instantid.*'photomaker'"),
    "base of another kind": ({"kind": "instantid"}, ConfigError, "^base: instantid .*sdxl.*sd15"),
    "file of another kind": ({"kind": "ip-adapter-faceid"}, CheckpointError, r"/adapter\.bin: image_proj .*perceiver"),
    "no recognizer": ({"face_encoder": None}, ConfigError, "^face_encoder "),
    "another recognizer": ({"face_encoder": "tiny/recognizer"}, ConfigError, "^face_encoder .*16"),
    "no image tower": ({"image_encoder": None}, ConfigError, "^image_encoder "),
    "a controlnet": ({"controlnet": "x"}, ConfigError, "^controlnet "),
    "a UNet": ({"unet": "x"}, ConfigError, "^unet "),
    "no weights": ({"weights": "absent/adapter.bin.pt"}, CheckpointError, r"absent/adapter\.bin\.pt"),
    "no base": ({"base": "runs/absent"}, CheckpointError, "runs/absent"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_named(wrong, bases, tmp_path) -> None:
    changes, error, message = WRONG[wrong]
    given = {
        "kind": "ip-adapter-faceid-plusv2",
        "weights": write_adapter("plusv2_sd15", tmp_path),
        "base": bases["sd15"],
        "face_encoder": filled_recognizer(),
        "image_encoder": filled_tower(),
    }
    given |= changes
    with pytest.raises(error, match=message):
        FaceMakeUpPipeline.from_published(given.pop("kind"), given.pop("weights"), **given)


def test_a_shortcut_is_for_kinds_that_have_one(bases, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"^shortcut=True"):
        make("faceid_sd15", bases, tmp_path, shortcut=True)
    with pytest.raises(ConfigError, match=r"^image_encoder "):
        make("faceid_sd15", bases, tmp_path, image_encoder=filled_tower())
    write_adapter("instantid", tmp_path)
    with pytest.raises(ConfigError, match=r"^controlnet .*ControlNetModel"):
        path = tmp_path / "alone" / "ip-adapter.bin"
        path.parent.mkdir()
        path.write_bytes((tmp_path / "adapter.bin").read_bytes())
        FaceMakeUpPipeline.from_published("instantid", path, base=bases["sdxl"], face_encoder=filled_recognizer())
