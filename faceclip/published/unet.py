"""The SDXL UNet of the FaceCLIP release (`unet.pt` of ByteDance/FaceCLIP, CC-BY-NC-4.0) in diffusers' class.

The release fine-tunes all of SDXL base 1.0's UNet and stores its state dictionary under diffusers' own names.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from torch import Tensor

from faceclip.errors import BAD_INPUT, CheckpointError
from faceclip.published.files import (
    check_keys,
    empty_model,
    mention_license,
    read_checkpoint,
    read_directory,
    resolve,
    without_prefix,
)
from faceclip.storage.loading import check_finite

UNET_FILE = "model/unet.pt"
WEIGHTS = "diffusion_pytorch_model"
# The published settings of stable-diffusion-xl-base-1.0/unet; what is not named is diffusers' default.
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def load_unet(
    path_or_hub_id: str | Path, *, dtype: torch.dtype | None = None, config: dict[str, Any] | None = None
) -> UNet2DConditionModel:
    """Loads the release's UNet in evaluation mode, conditioned by `FaceCLIP.encode`; licence CC-BY-NC-4.0, logged once.

    Args:
        path_or_hub_id: `unet.pt`, a directory made by `python -m faceclip.published convert-unet`, or a hub id.
        dtype: dtype of the weights. None keeps the stored one.
        config: diffusers configuration of a file whose UNet is not SDXL's. A directory has its own.

    Raises:
        CheckpointError: unreadable file, or one that is not this UNet, with the keys that differ (all their names are
            attributes of the error). ConfigError: `config` describes no UNet, or no path is given.
    """
    path = resolve(path_or_hub_id, UNET_FILE)
    if path.is_dir():
        unet, state = _read_directory(path)
        what = "UNet of its configuration"
    else:
        unet = empty_model(UNet2DConditionModel, config or SDXL)
        state = without_prefix(read_checkpoint(path), "conv_in.weight", str(path))
        what = "UNet of this configuration" if config else "UNet of SDXL (the release's file is model/unet.pt)"
    check_keys(state, {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}, str(path), what)
    check_finite(state, path)
    unet.load_state_dict(state, strict=True, assign=True)
    mention_license(str(path))
    return unet.to(dtype).eval() if dtype is not None else unet.eval()


def _read_directory(path: Path) -> tuple[UNet2DConditionModel, dict[str, Tensor]]:
    """Returns (empty model, state as stored); diffusers' own loader would widen 16-bit weights to float32."""
    try:
        with init_empty_weights():
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(path))
    except (OSError, *BAD_INPUT) as error:
        raise CheckpointError(f"{path} is no directory of a UNet ({error})") from error
    whole = (path / f"{WEIGHTS}.safetensors").is_file()  # not the variants that may lie beside it
    return unet, read_directory(path, f"{WEIGHTS}.safetensors" if whole else f"{WEIGHTS}-*-of-*.safetensors")[0]
