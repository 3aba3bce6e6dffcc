"""Keeps frozen parts in 16 bits: half the memory of float32, and no float32 copy while they are loaded.

Products and convolutions read bf16 under autocast, so weights in 16 bits lose only what autocast would round away.
Norms stay in float32, as autocast computes them, and so do the autoencoder, which is small, and all trained weights.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError
from faceclip.storage.tensors import find_weights
from faceclip.towers.image import ImageTower

Frozen = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def norms_in_float32(module: nn.Module) -> None:
    """Casts the norms of a module in 16 bits to float32; they take hardly any memory."""
    for part in module.modules():
        if isinstance(part, _NORMS):
            part.float()


def half_variant(folder: Path, frozen: Frozen) -> str | None:
    """Returns the variant of a diffusers model's files to read: "fp16" if frozen weights have 16 bits or if the folder
    has no other files, and None for the files without a variant."""
    try:
        find_weights(folder)
    except CheckpointError:
        return "fp16"  # loading names what is missing
    return "fp16" if frozen != "fp32" and _has(folder, "fp16") else None


def _has(folder: Path, variant: str) -> bool:
    return any(f".{variant}." in path.name for path in find_weights(folder, variant=variant))


def autocast_for(frozen: Frozen, device: torch.device) -> AbstractContextManager[None]:
    """Context for forward passes outside of training steps: bf16 autocast if frozen weights have 16 bits."""
    return torch.autocast(device.type, torch.bfloat16, enabled=frozen != "fp32")


def autocast_of(tower: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """The same for a frozen tower, by the type of its matrices; no autocast for an ONNX graph, which has no
    parameters."""
    matrix = next((parameter for parameter in tower.parameters() if parameter.ndim > 1), None)
    half = matrix is not None and matrix.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


@torch.no_grad()
def read_references(encoder: FaceCLIP, image_tower: ImageTower, faces: Tensor) -> dict[str, NDArray]:
    """Returns identity (N, E) float32, tokens (N, P, W) float16 and image_tokens (N, T, V) float16 of aligned faces
    (N, 3, S, S) in [0, 1]."""
    with autocast_of(encoder.face_encoder, faces.device):
        face = encoder.face_features(faces)
    with autocast_of(image_tower, faces.device):
        image = image_tower(faces)
    return {
        "identity": face.identity.float().cpu().numpy(),
        "tokens": face.tokens.to(torch.float16).cpu().numpy(),
        "image_tokens": image.tokens.to(torch.float16).cpu().numpy(),
    }
