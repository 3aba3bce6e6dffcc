"""Latents of a data set, computed once and kept beside it."""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays
from faceclip.errors import CheckpointError
from faceclip.storage.cache import cached_features
from faceclip.storage.hashes import files_hash, settings_text
from faceclip.storage.locks import locked_cache
from faceclip.training.progress import bar
from train_generator.loading import load_frozen
from train_generator.towers.vae import encode_mean

VAE_REMEDY = "train it by `python -m train_generator.towers.vae`"


def weights_hash(directory: Path) -> str:
    """SHA-256 over the weight files of a `save_pretrained` folder and its settings, such as the scale of latents.

    Raises CheckpointError when there are none.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory} holds no weights: {VAE_REMEDY}")
    try:
        settings = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} has no readable config.json ({error}): {VAE_REMEDY}") from error
    return files_hash((("", file) for file in files), head=settings_text(settings))


def cached_latents(vae: Path, arrays: FaceArrays) -> NDArray[np.float32]:
    """Scaled posterior means (N, C, s, s) of all images, memory-mapped; computed when they are not there yet, on the
    accelerator where there is one. An interrupted computation goes on where it stopped.

    They lie beside the decoded arrays and are named by their content and the autoencoder's weights.
    """
    directory = arrays.captions_path.parent.parent

    @cache
    def model() -> AutoencoderKL:
        return load_frozen(AutoencoderKL, vae, "vae", VAE_REMEDY).to(accelerator())

    def build(start: int, stop: int) -> dict[str, NDArray]:
        means = encode_mean(model(), arrays.images[start:stop]).numpy()
        return {"latents": (means * model().config.scaling_factor).astype(np.float32)}

    with locked_cache(directory), bar("latents", len(arrays)) as advance:
        return cached_features(
            directory,
            "latents",
            data_hash=arrays.content_hash,
            model_hash=weights_hash(vae),
            preprocessing=f"posterior means, {arrays.size} px",
            count=len(arrays),
            build=build,
            progress=advance,
        )["latents"]


def accelerator() -> torch.device:
    """The CUDA device of this process, of a launcher's ranks each its own; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
