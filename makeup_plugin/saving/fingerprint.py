"""Which base model an adapter fits: the part of the UNet's configuration on which its weights depend."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from faceclip.errors import CheckpointError

# Fields of the UNet's configuration on which the meaning of the weights depends.
_FINGERPRINT = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "transformer_layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


def fingerprint(unet: UNet2DConditionModel) -> dict[str, Any]:
    """The part of the UNet's configuration on which adapter weights depend, as plain JSON values."""
    return json.loads(json.dumps({name: copy.copy(unet.config.get(name)) for name in _FINGERPRINT}))


def check_fingerprint(saved: dict[str, Any], unet: UNet2DConditionModel, path: Path) -> None:
    """Raises CheckpointError, which names the first field in which the bases differ."""
    for name, value in fingerprint(unet).items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{path}: the adapter was trained on a UNet with {name}={saved.get(name)!r}, this one has"
                f" {value!r};"
                " load it on its own base model"
            )
