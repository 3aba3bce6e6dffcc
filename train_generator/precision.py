"""In which numbers frozen parts are kept: half the memory of float32, without a float32 copy on the way.

Products and convolutions read bf16 under autocast, so that weights of 16 bits lose nothing that autocast would not
round away. Norms stay in float32, as autocast computes them, and so do the autoencoder, which is small, and all that is
trained.
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
    """Casts the norms of a module of 16 bits, which hardly count, to float32."""
    for part in module.modules():
        if isinstance(part, _NORMS):
            part.float()


def half_variant(folder: Path, frozen: Frozen) -> str | None:
    """The variant of a diffusers model's folder to read: fp16's files where frozen weights of 16 bits are wanted, and
    where the folder has no others; None for the files without a variant."""
    try:
        find_weights(folder)
    except CheckpointError:
        return "fp16"  # what is missing is then named by loading
    return "fp16" if frozen != "fp32" and _has(folder, "fp16") else None


def _has(folder: Path, variant: str) -> bool:
    return any(f".{variant}." in path.name for path in find_weights(folder, variant=variant))


def autocast_for(frozen: Frozen, device: torch.device) -> AbstractContextManager[None]:
    """Context for forward passes outside of training steps: bf16 autocast where frozen weights have 16 bits."""
    return torch.autocast(device.type, torch.bfloat16, enabled=frozen != "fp32")


def autocast_of(tower: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """The same for a frozen tower, by the numbers of its matrices; none for an ONNX graph, which has no parameters."""
    matrix = next((parameter for parameter in tower.parameters() if parameter.ndim > 1), None)
    half = matrix is not None and matrix.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


@torch.no_grad()
def read_references(encoder: FaceCLIP, image_tower: ImageTower, faces: Tensor) -> dict[str, NDArray]:
    """identity (N, E) float32, tokens (N, P, W) float16 and image_tokens (N, T, V) float16 of aligned faces in [0, 1],
    (N, 3, S, S)."""
    with autocast_of(encoder.face_encoder, faces.device):
        face = encoder.face_features(faces)
    with autocast_of(image_tower, faces.device):
        image = image_tower(faces)
    return {
        "identity": face.identity.float().cpu().numpy(),
        "tokens": face.tokens.to(torch.float16).cpu().numpy(),
        "image_tokens": image.tokens.to(torch.float16).cpu().numpy(),
    }
