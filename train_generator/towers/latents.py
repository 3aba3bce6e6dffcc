"""Latents of a data set, computed once and kept beside it."""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from numpy.typing import NDArray

from faceclip.data.arrays import FaceArrays
from faceclip.data.cache import locked_cache
from faceclip.errors import CheckpointError
from train_generator.loading import load_frozen
from train_generator.towers.vae import encode_mean

VAE_REMEDY = "train it by `python -m train_generator.towers.vae`"


def weights_hash(directory: Path) -> str:
    """SHA-256 over the weight files of a `save_pretrained` folder. Raises CheckpointError when there are none."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory} holds no weights: {VAE_REMEDY}")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def cached_latents(vae: Path, arrays: FaceArrays) -> NDArray[np.float32]:
    """Scaled posterior means (N, C, s, s) of all images, memory-mapped; computed when they are not there yet.

    The file lies beside the decoded arrays and is named by their content and the autoencoder's weights.
    """
    name = f"latents-{arrays.content_hash[:12]}-{arrays.size}-{weights_hash(vae)[:12]}.npy"
    path = arrays.captions_path.parent.parent / name
    with locked_cache(path.parent):
        if not path.is_file():
            _write_latents(path, vae, arrays)
    return np.load(path, mmap_mode="r")


def _write_latents(path: Path, vae: Path, arrays: FaceArrays) -> None:
    model = load_frozen(AutoencoderKL, vae, "vae", VAE_REMEDY)
    latents = encode_mean(model, arrays.images).numpy() * model.config.scaling_factor
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, latents.astype(np.float32))
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
