"""SDXL's classes in the hub's layout: preset `sdxl` loads them in 16 bits, and the whole road runs."""

import json
import shutil
from pathlib import Path

import psutil
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.sdxl import FITTING, build, draw, load, train, words_of
from benchmarks.sdxl_files import UNET, VAE, WEIGHTS, write_model, write_parts
from faceclip.errors import ConfigError
from faceclip.settings.config import parse_config
from faceclip.storage.tensors import find_weights
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.loading import build_pipeline
from train_generator.precision import half_variant


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdxl")
    write_parts(directory, tiny=True)
    return directory


def test_the_sizes_are_the_published_ones():
    with torch.device("meta"):
        models = {"unet": UNet2DConditionModel(**UNET), "vae": AutoencoderKL(**VAE)}
    assert {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()} == WEIGHTS


@pytest.mark.parametrize(("numbers", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_preset_loads_the_hubs_files_in_16_bits(parts, numbers, dtype):
    words = [*words_of(parts, tiny=True), f"frozen={numbers}"]
    pipeline = build_pipeline(parse_config(GeneratorConfig, words, presets=PRESETS))
    for matrix in (pipeline.unet.conv_in, pipeline.image_encoder.tower.conv1, pipeline.joint_encoder.l.text.tower):
        assert next(p for p in matrix.parameters() if p.ndim > 1).dtype == dtype
    assert pipeline.unet.conv_norm_out.weight.dtype == pipeline.vae.dtype == torch.float32
    assert pipeline.scheduler.config.beta_end == 0.012 and not pipeline.scheduler.config.clip_sample


def test_pieces_have_an_index_that_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.sdxl_files.PIECE", 200_000)
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE | {"block_out_channels": (32, 32, 32, 32)})
    write_model(tmp_path / "vae", vae, variant="fp16")
    files = find_weights(tmp_path / "vae", variant="fp16")
    assert len(files) > 2 and half_variant(tmp_path / "vae", "fp32") == "fp16"
    index = json.loads((tmp_path / "vae" / "diffusion_pytorch_model.safetensors.index.fp16.json").read_text())
    assert index["metadata"]["total_size"] == 2 * sum(p.numel() for p in vae.parameters())
    loaded = AutoencoderKL.from_pretrained(tmp_path / "vae", variant="fp16")
    assert all(torch.isfinite(value).all() for value in loaded.state_dict().values())


def test_16_bits_without_autocast_are_rejected():
    with pytest.raises(ConfigError, match=r"frozen=bf16.*trainer\.precision=bf16"):
        parse_config(GeneratorConfig, ["frozen=bf16", "trainer.precision=fp32"], presets=PRESETS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_steps_a_kill_and_a_picture(parts, tiny_dataset, tmp_path, capsys):
    directory = tmp_path / "sdxl"
    shutil.copytree(parts, directory)
    train(directory, [f"data={tiny_dataset}"], tiny=True)
    draw(directory, tiny=True)
    printed = capsys.readouterr().out
    assert "killed after the checkpoint of step 1" in printed and "equal to the bit" in printed
    assert "two steps at 64 px" in printed


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_published_size(tmp_path):
    """Needs 30 GB of disk, 17 GiB of memory and, on one busy core, 47 minutes."""
    if shutil.disk_usage(tmp_path).free < 30e9 or psutil.virtual_memory().available < 17 * 2**30:
        pytest.skip("needs 30 GB of disk and 17 GiB of memory")
    assert "frozen=fp16" in FITTING  # the files are read in place
    build(tmp_path, tiny=False)
    found = load(tmp_path, [], tiny=False)
    assert found["peak"] <= 1.15 * found["weights"]
    train(tmp_path, [], tiny=False)
    draw(tmp_path, tiny=False)
