"""Saving, loading, adapters on another base, LoRAs of others, and what a broken directory says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.saving.adapters import remove_lora
from tests.full_disk import largest_file
from tests.makeup_plugin.calls import run


@pytest.fixture
def saved(pipeline, tmp_path):
    directory = tmp_path / "pipeline"
    pipeline.save_pretrained(directory)
    return directory


def test_round_trip_is_bit_identical(pipeline, saved, photo, points):
    wanted = run(pipeline, photo, points)
    loaded = FaceMakeUpPipeline.from_pretrained(saved)
    assert np.array_equal(run(loaded, photo, points), wanted)
    assert set(loaded.components) == set(pipeline.components)
    # Saving changed nothing in the pipeline itself, and a second trip changes nothing either.
    assert np.array_equal(run(pipeline, photo, points), wanted)
    loaded.save_pretrained(saved.with_name("again"))
    again = FaceMakeUpPipeline.from_pretrained(saved.with_name("again"))
    assert np.array_equal(run(again, photo, points), wanted)


def test_stored_unet_is_the_plain_base(saved, base_parts):
    from diffusers import UNet2DConditionModel

    stored = UNet2DConditionModel.from_pretrained(saved / "unet").state_dict()
    base = base_parts()["unet"].state_dict()
    assert stored.keys() == base.keys()
    assert all(torch.equal(stored[key], base[key]) for key in base)


def test_base_only_pipeline_round_trip(base_parts, tmp_path):
    base = FaceMakeUpPipeline(**base_parts(), add_watermark=False)
    base.save_pretrained(tmp_path)
    loaded = FaceMakeUpPipeline.from_pretrained(tmp_path)
    assert loaded.identity_channel is None and loaded.config.add_watermark is False
    assert np.array_equal(run(base, None, None), run(loaded, None, None))


def test_added_part_moves_to_another_base(pipeline, saved, base_parts, photo, points, tmp_path):
    """The adapter alone, on a base in SDXL's layout, with the same encoders: the same images."""
    wanted = run(pipeline, photo, points)
    adapter = pipeline.save_adapter(tmp_path / "adapter")
    assert not (adapter / "unet").exists()
    shared = {name: getattr(pipeline, name) for name in ("joint_encoder", "image_encoder", "face_fitter")}
    for source in (adapter, saved):  # a whole pipeline's directory is an adapter too
        other = FaceMakeUpPipeline.from_base(saved, adapter=source, **shared)
        assert np.array_equal(run(other, photo, points), wanted)
    given = {name: base_parts()[name] for name in ("unet", "vae")}
    mixed = FaceMakeUpPipeline.from_base(saved, **given, **shared)
    assert mixed.unet is given["unet"] and mixed.vae is given["vae"]
    with pytest.raises(ConfigError, match="joint_encoder="):
        FaceMakeUpPipeline.from_base(saved)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path} .*SDXL .*unet, vae, scheduler"):
        FaceMakeUpPipeline.from_base(tmp_path, scheduler=pipeline.scheduler, **shared)
    with pytest.raises(CheckpointError, match=r"/nowhere .*SDXL .*unet, vae, scheduler"):
        FaceMakeUpPipeline.from_base(tmp_path / "nowhere", **shared)


def test_a_licence_is_carried_on(pipeline, base_parts, saved, tmp_path):
    def written(directory):
        return json.loads((directory / "adapter.json").read_text())["licence"]

    assert written(saved) == "unknown"  # made of parts that say nothing
    strict = tmp_path / "strict"
    pipeline.save_pretrained(strict, licence="CC-BY-NC-4.0")
    loaded = FaceMakeUpPipeline.from_pretrained(strict)
    loaded.save_adapter(tmp_path / "adapter")
    loaded.save_pretrained(tmp_path / "again")
    assert written(tmp_path / "adapter") == written(tmp_path / "again") == "CC-BY-NC-4.0"
    other = FaceMakeUpPipeline(**base_parts(), image_encoder=pipeline.image_encoder)
    other.load_adapter(tmp_path / "adapter")
    assert written(other.save_adapter(tmp_path / "b")) == "CC-BY-NC-4.0"
    assert written(other.save_adapter(tmp_path / "b", licence="MIT")) == "MIT"
    # The adapter's licence goes with it; that of the other parts stays.
    loaded.unload_adapter()
    pipeline.save_adapter(tmp_path / "free", licence="Apache-2.0")
    loaded.load_adapter(tmp_path / "free")
    loaded.save_pretrained(tmp_path / "mixed")
    assert written(tmp_path / "mixed") == "CC-BY-NC-4.0 AND Apache-2.0"
    assert written(loaded.save_adapter(tmp_path / "b")) == "Apache-2.0"
    loaded.unload_adapter()
    assert written(loaded.save_adapter(tmp_path / "b")) == "CC-BY-NC-4.0"


def test_the_licence_of_the_joint_encoder_is_not_lost(base_parts, tmp_path):
    parts = base_parts()
    parts["joint_encoder"].register_to_config(licence="CC-BY-NC-4.0")
    pipeline = FaceMakeUpPipeline(**parts)
    pipeline.save_pretrained(tmp_path / "one")  # of the other parts nothing is known
    assert json.loads((tmp_path / "one" / "adapter.json").read_text())["licence"] == "unknown AND CC-BY-NC-4.0"
    again = FaceMakeUpPipeline.from_pretrained(tmp_path / "one")
    assert again.joint_encoder.config.licence == "CC-BY-NC-4.0"
    again.save_pretrained(tmp_path / "two")
    assert json.loads((tmp_path / "two" / "adapter.json").read_text())["licence"] == "unknown AND CC-BY-NC-4.0"


def test_loading_in_another_dtype(saved, photo, points):
    loaded = FaceMakeUpPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    for name, module in loaded.components.items():
        if isinstance(module, torch.nn.Module):
            assert {p.dtype for p in module.parameters()} == {torch.bfloat16}, name
    assert np.isfinite(run(loaded, photo, points)).all()


def test_no_weight_lives_in_two_parts(pipeline):
    owners = {}
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            for key, value in part.named_parameters():
                assert value.data_ptr() not in owners, (name, key, owners.get(value.data_ptr()))
                owners[value.data_ptr()] = f"{name}.{key}"


def test_broken_directories_are_named(saved, tmp_path):
    load = FaceMakeUpPipeline.from_pretrained
    with pytest.raises(CheckpointError, match=r"/nowhere .*owner/name"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/adapter\.json "):
        load(tmp_path / "empty")

    def broken(name, change):
        copy = tmp_path / name
        shutil.copytree(saved, copy)
        change(copy)
        return copy

    weights = "unet/diffusion_pytorch_model.safetensors"
    truncated = broken("truncated", lambda d: (d / weights).write_bytes((d / weights).read_bytes()[:999]))
    with pytest.raises(CheckpointError, match=r"unet/diffusion_pytorch_model\.safetensors "):
        load(truncated)
    without = broken("without", lambda d: (d / weights).unlink())
    with pytest.raises(CheckpointError, match=r"unet/diffusion_pytorch_model\.safetensors "):
        load(without)
    no_lora = broken("no_lora", lambda d: (d / "lora.safetensors").unlink())
    with pytest.raises(CheckpointError, match=r"no_lora/lora\.safetensors "):
        load(no_lora)
    interrupted = broken("interrupted", lambda d: (d / "adapter.json").unlink())
    with pytest.raises(CheckpointError, match=r"interrupted/adapter\.json "):
        load(interrupted)


def test_a_failed_save_leaves_the_pipeline_and_the_earlier_save_whole(pipeline, saved, photo, points):
    """Files beyond a size are refused by the kernel: small ones are written, the weights are not."""
    wanted = run(pipeline, photo, points)
    (saved / "unet" / "notes.txt").write_text("mine")
    before = contents(saved)
    remove_lora(pipeline.unet)
    largest = max(path.stat().st_size for path in saved.rglob("*.safetensors"))
    for size, save in (
        (3000, pipeline.save_adapter),
        (3000, pipeline.save_pretrained),
        (largest - 1, pipeline.save_pretrained),
    ):
        with largest_file(size), pytest.raises(CheckpointError, match=r"/pipeline .*os error 27"):
            save(saved)
        assert contents(saved) == before
    assert np.array_equal(run(FaceMakeUpPipeline.from_pretrained(saved), photo, points), wanted)
    shutil.rmtree(saved / "vae")
    (saved / "vae").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"/vae "):
        pipeline.save_pretrained(saved)


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_saving_over_another_save_leaves_nothing_of_it_that_would_be_loaded(pipeline, saved, photo, points):
    whole = contents(saved)
    (saved / "README.md").write_text("my card")
    (saved / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_text("another variant")
    pipeline.save_pretrained(saved, max_shard_size="20KB")
    pieces = contents(saved)
    assert len([name for name in pieces if name.startswith("unet/diffusion_pytorch_model-00")]) > 1
    assert len([name for name in pieces if name.startswith("identity_channel/diffusion_pytorch_model-00")]) > 1
    assert not {f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "identity_channel")} & pieces.keys()
    assert np.array_equal(run(FaceMakeUpPipeline.from_pretrained(saved), photo, points), run(pipeline, photo, points))
    (saved / f".save.{os.getpid()}.tmp" / "unet").mkdir(parents=True)  # of a killed process
    pipeline.save_pretrained(saved)
    own = {"README.md": b"my card", "unet/diffusion_pytorch_model.fp16.safetensors": b"another variant"}
    assert contents(saved) == whole | own


def test_saved_files_name_the_base_and_do_not_tell_where_they_were_made(pipeline, saved, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    shared = {name: getattr(pipeline, name) for name in ("joint_encoder", "image_encoder", "face_fitter")}
    FaceMakeUpPipeline.from_base(saved, adapter=saved, **shared).save_pretrained(first)
    FaceMakeUpPipeline.from_pretrained(first).save_pretrained(again)
    for directory in (first, again):
        assert json.loads((directory / "adapter.json").read_text())["base_model"] == saved.name
    texts = [path.read_text() for path in again.rglob("*.json")]
    assert len(texts) == 10 and not any(str(tmp_path) in text for text in texts)


def test_files_of_others_beside_an_adapter_stay_as_they_are(pipeline, tmp_path):
    foreign = {name: tmp_path / name / "config.json" for name in ("shared", "unet")}
    for path in foreign.values():
        path.parent.mkdir()
        path.write_text('{"_name_or_path": "/somebody/else/model", "b": 1, "a": 2}')
    before = {name: path.read_bytes() for name, path in foreign.items()}
    pipeline.identity_channel.register_to_config(_name_or_path="/home/me/channel")
    pipeline.save_adapter(tmp_path)
    assert {name: path.read_bytes() for name, path in foreign.items()} == before
    assert json.loads((tmp_path / "identity_channel" / "config.json").read_text())["_name_or_path"] == "channel"
    pipeline.save_pretrained(tmp_path)
    assert foreign["shared"].read_bytes() == before["shared"]  # a folder that is no part of the pipeline
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_save_with_a_variant_loads_with_it(pipeline, base_parts, photo, points, tmp_path):
    pipeline.save_pretrained(tmp_path, variant="mine")
    assert not (tmp_path / "identity_channel" / "diffusion_pytorch_model.safetensors").exists()
    wanted = run(pipeline, photo, points)
    loaded = FaceMakeUpPipeline.from_pretrained(tmp_path, variant="mine")
    assert np.array_equal(run(loaded, photo, points), wanted)
    parts = {name: getattr(pipeline, name) for name in ("joint_encoder", "image_encoder", "face_fitter")}
    other = FaceMakeUpPipeline(**base_parts() | parts)
    with pytest.raises(CheckpointError, match="/identity_channel "):
        other.load_adapter(tmp_path)
    other.load_adapter(tmp_path, variant="mine")
    assert np.array_equal(run(other, photo, points), wanted)


def test_the_base_names_its_scheduler(pipeline, saved):
    EulerDiscreteScheduler(timestep_spacing="trailing").save_pretrained(saved / "scheduler")
    loaded = FaceMakeUpPipeline.from_base(saved, joint_encoder=pipeline.joint_encoder)
    assert isinstance(loaded.scheduler, EulerDiscreteScheduler)
    assert loaded.scheduler.config.timestep_spacing == "trailing"
    path = saved / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("EulerDiscreteScheduler", "NobodysScheduler"))
    with pytest.raises(CheckpointError, match=r"'NobodysScheduler'.* scheduler="):
        FaceMakeUpPipeline.from_base(saved, joint_encoder=pipeline.joint_encoder)


def test_an_adapter_takes_the_precision_of_the_base(pipeline, saved, base_parts, photo, points):
    parts = {name: getattr(pipeline, name) for name in ("joint_encoder", "image_encoder", "face_fitter")}
    parts |= {"unet": base_parts()["unet"]}
    loaded = FaceMakeUpPipeline.from_base(saved, adapter=saved, dtype=torch.bfloat16, **parts)
    for part in (loaded.unet, loaded.identity_channel, loaded.shading_channel):
        assert {weight.dtype for weight in part.parameters()} == {torch.float32}
    assert np.isfinite(run(loaded, photo, points)).all()


def test_model_index_names_importable_classes(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["identity_channel"] == ["makeup_plugin.identity", "IdentityChannel"]
    assert index["shading_channel"] == ["diffusers", "ControlNetModel"]


def test_pipelines_saved_with_earlier_module_paths_load(saved):
    """model_index.json keeps the modules of the components; the image tower's has moved since."""
    index = json.loads((saved / "model_index.json").read_text())
    assert index["joint_encoder"] == ["faceclip.encoder", "FaceCLIP"]
    index["image_encoder"] = ["faceclip.image_tower", "ImageTower"]
    index["face_fitter"] = [None, None]  # the fixture's is a class of these tests
    (saved / "model_index.json").write_text(json.dumps(index))
    # In a process of its own, which has imported nothing else.
    script = "import sys\nfrom makeup_plugin import FaceMakeUpPipeline\nFaceMakeUpPipeline.from_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(saved)], check=True, timeout=120)
