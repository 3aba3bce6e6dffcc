"""Computes the latents of a data set once and caches them beside it."""

from functools import cache
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays
from faceclip.data.blocks import kept_rows
from faceclip.errors import CheckpointError
from faceclip.storage.hashes import files_hash, settings_text
from faceclip.storage.regular import parse_json, read_regular
from faceclip.storage.shards import ShardedArray
from faceclip.towers.placement import accelerator
from makeup_plugin.latents import to_unit_scale
from train_generator.loading import load_frozen
from train_generator.precision import half_variant
from train_generator.towers.vae import encode_mean

VAE_REMEDY = "train it by `python -m train_generator.towers.vae`"


def weights_hash(directory: Path) -> str:
    """Returns the SHA-256 of the weights and settings (such as the scale of latents) of a `save_pretrained` folder.

    Raises CheckpointError if the folder has no weights or no readable config.json.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory} holds no weights: {VAE_REMEDY}")
    try:
        settings = parse_json(read_regular(directory / "config.json"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory} has no readable config.json ({error}): {VAE_REMEDY}") from error
    return files_hash((("", file) for file in files), head=settings_text(settings))


def load_vae(directory: Path) -> AutoencoderKL:
    """Loads the frozen autoencoder of a folder, to the accelerator if there is one.

    Raises CheckpointError if the folder is missing or damaged.
    """
    variant = half_variant(directory, "fp32")  # a copy of the hub's files may have only those of fp16
    return load_frozen(AutoencoderKL, directory, "vae", VAE_REMEDY, variant=variant).to(accelerator())


def cached_latents(vae: Path, arrays: FaceArrays) -> ShardedArray:
    """Returns the scaled posterior means (N, C, s, s) float32 of all images, memory-mapped.

    Missing ones are computed first, on the accelerator if there is one; an interrupted computation resumes. They are
    cached beside the decoded arrays, under a key of these and the autoencoder's weights.
    """

    @cache
    def model() -> AutoencoderKL:
        return load_vae(vae)

    def build(start: int, stop: int) -> dict[str, NDArray]:
        means = encode_mean(model(), arrays.images[start:stop])
        return {"latents": to_unit_scale(model(), means).numpy().astype(np.float32)}

    facts = {
        "data": arrays.content_hash,
        "model": weights_hash(vae),
        "preprocessing": f"posterior means, {arrays.size} px",
    }
    return kept_rows(arrays.cache, "latents", facts, len(arrays), build)["latents"]
