"""Saved pipelines with a tensor, a file or a field that is wrong: a CheckpointError that names it, never a picture."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from faceclip.errors import CheckpointError
from faceclip.storage.regular import read_settings
from faceclip.towers.image import ImageTower
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.shading import shading_channel_from_unet
from tests.hostile.checkpoints import Attacks, run
from tests.makeup_plugin.conftest import make_joint_encoder, make_pipeline, make_unet

PARTS = ("vae", "unet", "joint_encoder", "image_encoder", "identity_channel", "shading_channel", "face_fitter")
WEIGHTS = "diffusion_pytorch_model.safetensors"
SETTINGS = ("model_index.json", "adapter.json", "unet/config.json", "vae/config.json", "joint_encoder/config.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hostile") / "whole"
    make_pipeline().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def bare() -> FaceMakeUpPipeline:
    """A pipeline without an adapter."""
    pipeline = make_pipeline(lora=False)
    pipeline.unload_adapter()
    return pipeline


@pytest.fixture(scope="module")
def adapter(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose adapter.json a test changes."""
    return Path(shutil.copytree(whole, tmp_path_factory.mktemp("adapter") / "bad"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 10**9),
        ("rank", 0),
        ("rank", True),
        ("alpha", float("nan")),
        ("alpha", 1e300),
        ("alpha", True),
        ("target_modules", "nothing"),
        ("target_modules", r"(?:[\w.]+)+!"),
        ("target_modules", r".*\.(attn1)\.(nothing)"),
        ("target_modules", []),
        ("target_modules", ["nothing"]),
        ("target_modules", ["to_q", 5]),
        ("target_modules", ["norm1"]),
        ("target_modules", ["(a+)+"]),
        ("target_modules", ["to_q"] * 20_000),
    ],
)
@pytest.mark.timeout(60)
def test_a_refused_adapter_changes_nothing(
    whole: Path, adapter: Path, bare: FaceMakeUpPipeline, field: str, value: object
) -> None:
    config = json.loads((whole / "adapter.json").read_text())
    config["lora"][field] = value
    (adapter / "adapter.json").write_text(json.dumps(config))
    before = state_of(bare)
    with pytest.raises(CheckpointError) as refusal:
        bare.load_adapter(adapter)
    assert field in str(refusal.value) or "lora_" in str(refusal.value)
    assert str(adapter) in str(refusal.value) and state_of(bare) == before


@pytest.mark.timeout(60)
def test_after_a_refusal_the_good_adapter_loads(whole: Path, adapter: Path, bare: FaceMakeUpPipeline) -> None:
    config = json.loads((whole / "adapter.json").read_text())
    config["lora"]["target_modules"] = "nothing"
    (adapter / "adapter.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        bare.load_adapter(adapter)
    bare.load_adapter(whole)
    assert bare.identity_channel is not None
    bare.unload_adapter()


def state_of(pipeline: FaceMakeUpPipeline) -> tuple:
    names = [name for name, _ in pipeline.unet.named_modules()]
    processors = {name: type(one) for name, one in pipeline.unet.attn_processors.items()}
    configs = dict(getattr(pipeline.unet, "peft_config", {}))
    return names, processors, configs, pipeline.unet._hf_peft_config_loaded, pipeline.identity_channel


def test_target_modules_may_be_a_list_of_names(whole: Path, copy: Path) -> None:
    path = copy / "adapter.json"
    config = json.loads(path.read_text())
    config["lora"]["target_modules"] = ["to_out.0", "to_q", "to_k", "to_v"]
    path.write_text(json.dumps(config))
    one, two = (FaceMakeUpPipeline.from_pretrained(place).unet.state_dict() for place in (whole, copy))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    FaceMakeUpPipeline.from_pretrained(copy).save_pretrained(copy)
    assert sorted(json.loads(path.read_text())["lora"]["target_modules"]) == ["to_k", "to_out.0", "to_q", "to_v"]
    FaceMakeUpPipeline.from_pretrained(copy)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def refused(directory: Path) -> str:
    with pytest.raises(CheckpointError) as refusal:
        FaceMakeUpPipeline.from_pretrained(directory)
    return str(refusal.value)


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_loaded_strictly(copy: Path, part: str) -> None:
    path = copy / part / WEIGHTS
    kept = path.read_bytes()
    tensors = load_file(path)
    name = sorted(key for key, value in tensors.items() if value.is_floating_point())[-1]
    value = tensors[name]
    nan, infinite = value.clone(), value.clone()
    nan.flatten()[0], infinite.flatten()[-1] = float("nan"), float("inf")
    cases = [
        (name, lambda t: t.pop(name)),
        ("stranger", lambda t: t.update(stranger=torch.ones(1))),
        (name, lambda t: t.update({name: torch.cat([value, value])})),
        (name, lambda t: t.update({name: value.to(torch.int8)})),
        (name, lambda t: t.update({name: value > 0})),
        (name, lambda t: t.update({name: nan})),
        (name, lambda t: t.update({name: infinite})),
        (str(path), dict.clear),
    ]
    # One road loads all parts: each meets three of the damages, the UNet all of them.
    number = PARTS.index(part)
    chosen = cases if part == "unet" else [cases[0], cases[1 + number % 4], cases[5 + number % 3]]
    for word, change in chosen:
        change_tensors(path, change)
        message = refused(copy)
        assert word in message and f"copy/{part}" in message
        path.write_bytes(kept)
    path.unlink()
    assert str(path) in refused(copy)
    path.write_bytes(kept)
    (copy / part).rename(copy / "away")
    assert f"copy/{part}" in refused(copy)


def test_counters_must_be_integers(copy: Path) -> None:
    integers = copy / "joint_encoder" / WEIGHTS
    counter = next(key for key, value in load_file(integers).items() if value.dtype == torch.int64)
    change_tensors(integers, lambda t: t.update({counter: t[counter].float()}))
    assert counter in refused(copy)


def test_parts_in_pieces_are_read_from_their_folder_alone(copy: Path) -> None:
    pipeline = FaceMakeUpPipeline.from_pretrained(copy)
    pipeline.save_pretrained(copy, max_shard_size="20KB")
    FaceMakeUpPipeline.from_pretrained(copy)
    index = copy / "unet" / f"{WEIGHTS}.index.json"
    content = json.loads(index.read_text())
    for places in (None, 5, {}, {"a": 5}, {"a": "../vae/x.safetensors"}, {"a": "/etc/passwd"}, {"a": ".."}):
        index.write_text(json.dumps(content | {"weight_map": places}))
        assert str(index) in refused(copy)
    index.write_text("null")
    assert str(index) in refused(copy)


def test_a_forgotten_variant_is_named(copy: Path) -> None:
    pipeline = FaceMakeUpPipeline.from_pretrained(copy)
    shutil.rmtree(copy)
    pipeline.save_pretrained(copy, variant="mine")
    assert "variant='mine'" in refused(copy)
    FaceMakeUpPipeline.from_pretrained(copy, variant="mine")


@pytest.mark.parametrize(
    "entry", [5, {}, "unet", None, [None, None], ["diffusers"], ["diffusers", "__dict__"], ["diffusers", "utils"]]
)
def test_the_index_names_classes_of_models(copy: Path, entry: object) -> None:
    path = copy / "model_index.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"unet": entry}))
    assert f"{path}: unet" in refused(copy)


def test_no_module_is_imported_that_an_index_names(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = copy / "model_index.json"
    for module in ("evil_module", "os", "diffusers.utils", "builtins", ""):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"vae": [module, "AutoencoderKL"]}))
        assert f"{path}: vae" in refused(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [*SETTINGS, "scheduler/scheduler_config.json"])
def test_files_of_settings_are_json_objects_of_regular_files(copy: Path, name: str) -> None:
    path = copy / name
    whole = path.read_text().rstrip().removesuffix("}")
    for damage in ("null", f'{whole}, "more": NaN}}'):
        path.write_text(damage)
        assert str(path) in refused(copy)
    path.unlink()
    os.mkfifo(path)
    assert str(path) in refused(copy)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert str(path) in refused(copy)


@pytest.mark.parametrize(
    "damage",
    [
        *("null", "[]", "5", "", "{", '"x"', "\ud800"),
        *("[" * 100_000, '{"a":' * 100_000, " " * 2**24),
        *(f'{{"more": {value}}}' for value in ("9" * 5000, "NaN", "1" + "0" * 17, "[" * 5000 + "]" * 5000)),
    ],
    ids=lambda damage: f"{damage[:10]!r}, {len(damage)}",
)
@pytest.mark.timeout(30)
def test_settings_are_json_objects_of_sane_numbers(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(damage, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(CheckpointError) as refusal:
        read_settings(path)
    assert str(path) in str(refusal.value)


def test_infinity_is_a_setting_of_schedulers_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"lambda_min_clipped": -Infinity}')
    assert read_settings(path, infinite=True) == {"lambda_min_clipped": float("-inf")}
    with pytest.raises(CheckpointError, match="lambda_min_clipped"):
        read_settings(path)


@pytest.mark.parametrize("name", [f"unet/{WEIGHTS}", "lora.safetensors", f"identity_channel/{WEIGHTS}"])
@pytest.mark.timeout(30)
def test_weights_are_regular_files(copy: Path, name: str) -> None:
    path = copy / name
    path.unlink()
    os.mkfifo(path)
    assert str(path) in refused(copy)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert str(path) in refused(copy)
    path.unlink()
    path.mkdir()
    assert str(path) in refused(copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers_per_block", 10**9),
        ("downsample_padding", 1000),
        ("transformer_layers_per_block", 10**7),
        ("block_out_channels", [16, 10**9]),
        ("cross_attention_dim", {}),
        ("down_block_types", "x"),
        ("block_out_channels", 5),
        ("norm_num_groups", 0),
        ("addition_embed_type", []),
    ],
)
@pytest.mark.timeout(60)
def test_settings_that_describe_no_model_of_the_weights(copy: Path, field: str, value: object) -> None:
    path = copy / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert f"copy/unet/{'config.json' if isinstance(value, int) else ''}" in refused(copy)


@pytest.mark.parametrize("part", ["vae", "image_encoder", "identity_channel", "shading_channel"])
def test_other_ways_of_loading_are_strict_too(whole: Path, copy: Path, part: str) -> None:
    """diffusers' own class of pipelines, a base for `from_base`, and the class of the part."""
    path = copy / part / WEIGHTS
    name = sorted(load_file(path))[0]
    change_tensors(path, lambda t: t.pop(name))
    with pytest.raises(CheckpointError, match=re.escape(name)):
        DiffusionPipeline.from_pretrained(copy)
    if part == "vae":
        with pytest.raises(CheckpointError, match=re.escape(name)):
            FaceMakeUpPipeline.from_base(copy, joint_encoder=make_joint_encoder())
        (copy / part / "config.json").write_text("null")
        with pytest.raises(CheckpointError, match=r"vae.config\.json"):
            FaceMakeUpPipeline.from_base(copy, joint_encoder=make_joint_encoder())
    elif part != "shading_channel":
        kind = {"image_encoder": ImageTower, "identity_channel": IdentityChannel}[part]
        with pytest.raises(CheckpointError, match=re.escape(name)):
            kind.from_pretrained(copy / part)
        kind.from_pretrained(whole / part)


def test_an_adapter_for_another_base_is_refused_before_anything_changes(adapter: Path, bare, whole: Path) -> None:
    shutil.copyfile(whole / "adapter.json", adapter / "adapter.json")
    shutil.rmtree(adapter / "shading_channel")
    shading_channel_from_unet(make_unet(cross_attention_dim=64), vae_scale_factor=4).save_pretrained(
        adapter / "shading_channel"
    )
    before = state_of(bare)
    with pytest.raises(CheckpointError, match="shading_channel: its cross_attention_dim is 64") as refusal:
        bare.load_adapter(adapter)
    assert str(adapter) in str(refusal.value) and state_of(bare) == before


@pytest.mark.parametrize("steps", [10**9, 0, "x", None, True])
def test_the_steps_of_a_scheduler_are_no_array_beyond_reason(copy: Path, steps: object) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": steps}))
    assert f"{path}: num_train_timesteps" in refused(copy)


@pytest.fixture(scope="module")
def attacks(tmp_path_factory: pytest.TempPathFactory) -> Attacks:
    return Attacks(tmp_path_factory.mktemp("attacks"))


@pytest.mark.parametrize(
    ("first", "end"), [(0, 40), pytest.param(0, 10_000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
)
def test_damaged_pipelines_draw_or_are_refused_by_name(attacks: Attacks, first: int, end: int) -> None:
    counts, faults = run(attacks, first, end)
    assert faults == []
    assert counts["drawn"] > (end - first) / 20 and counts["CheckpointError"] > (end - first) / 2
