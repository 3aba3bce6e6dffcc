"""Small random towers and bases in the layout of the shipped ones, and runs of the training commands."""

import contextlib
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from faceclip.training.checkpoints import step_of
from tests.warm import Process

# Sizes of stage 1 that suit `save_towers`.
SMALL_ENCODER = [
    "fusion.layers=2",
    "fusion.attention_width=32",
    "fusion.text_hidden=32",
    "fusion.face_hidden=32",
    "fusion.face_heads=4",
    "heads.hidden=32",
]


def save_towers(directory: Path) -> list[str]:
    """Random towers below `directory`; returns the overrides that name them."""
    torch.manual_seed(0)
    vocabulary = list(range(3000))
    towers = {
        "recognizer": FaceViT(image_size=36, patch_size=9, width=48, depth=1, heads=4, embedding_dim=32),
        "text_l": TextTower(width=32, layers=1, heads=2, embed_dim=32, vocabulary=vocabulary),
        "text_g": TextTower(width=32, layers=1, heads=2, quick_gelu=False, embed_dim=32, vocabulary=vocabulary),
        "image": ImageTower(image_size=32, patch_size=8, width=32, layers=2, heads=2, embed_dim=32),
    }
    for name, tower in towers.items():
        tower.eval().save_pretrained(directory / name)
    return [f"towers.{name}={directory / name}" for name in towers]


def save_base(directory: Path, *, context: int = 64, pooled: int = 32) -> Path:
    """A random SDXL base (UNet with text_time conditioning, VAE of factor 4, scheduler)."""
    torch.manual_seed(1)
    UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=context,
        attention_head_dim=2,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + 6 * 8,
    ).save_pretrained(directory / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
    ).save_pretrained(directory / "vae")
    DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False).save_pretrained(directory / "scheduler")
    return directory


def start(module: str, *arguments: str) -> Process:
    """`python -m module arguments` with one thread, in a process of its own."""
    return Process(["-m", module, *arguments], os.environ | {"OMP_NUM_THREADS": "1"})


def run(main: Callable[[Sequence[str]], int], *arguments: str) -> tuple[int, str]:
    """Exit status and output (both streams) of a command's `main`, in this process: its imports are paid once."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = main(list(arguments))
    return status, output.getvalue()


def kill_after_checkpoint(process: Process, directory: Path, signal: int) -> int:
    """Sends `signal` as soon as a complete checkpoint lies below `directory`; returns the exit status."""
    _send_when_there(process, directory, "checkpoints/*/manifest.json", signal)
    process.communicate(timeout=60)
    return process.returncode


def stop_before_checkpoints(process: Process, directory: Path, signal: int) -> tuple[int, str, int]:
    """Sends `signal` when the first steps are logged; returns status, output and the step of the one checkpoint."""
    _send_when_there(process, directory, "log.jsonl", signal)
    output, _ = process.communicate(timeout=60)
    (saved,) = directory.glob("checkpoints/step-*")
    assert (saved / "manifest.json").is_file()
    return process.returncode, output, step_of(saved)


def _send_when_there(process: Process, directory: Path, pattern: str, signal: int) -> None:
    deadline = time.monotonic() + 240
    while not any(path.stat().st_size for path in directory.glob(pattern)):
        assert process.poll() is None, process.output()
        assert time.monotonic() < deadline, f"no {pattern} appeared"
        time.sleep(0.02)
    process.send_signal(signal)


def same_weights(first: Path, second: Path) -> bool:
    """Whether two export folders hold the same tensors, bit for bit."""
    names = sorted(p.relative_to(first) for p in first.rglob("*.safetensors"))
    assert names, f"no weights below {first}"
    assert names == sorted(p.relative_to(second) for p in second.rglob("*.safetensors"))
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
