"""The LoRA that belongs to a published adapter, as a file of its own (`ip-adapter-faceid_sd15_lora.safetensors`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor

from faceclip.errors import CheckpointError
from faceclip.storage.loading import DAMAGE
from makeup_plugin.published.adapters import lora_settings
from makeup_plugin.saving.lora_files import read_lora_file


def read_lora(path: str | Path, unet: UNet2DConditionModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in PEFT's names and their settings; the file's own scales (alpha / rank) are multiplied in.

    The names may be kohya's, diffusers' or PEFT's. Raises CheckpointError for a file that is damaged, holds no LoRA for
    a UNet, or one that does not fit this UNet.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a LoRA is read from a .safetensors file")
    given = read_lora_file(path)
    try:
        state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(given.copy(), unet_config=unet.config)
        state = _scaled(state, alphas or {}, path)
        state = {key.removeprefix("unet."): value for key, value in state.items() if key.startswith("unet.")}
        state = convert_unet_state_dict_to_peft(state)
    except DAMAGE as error:
        raise CheckpointError(f"{path} cannot be read as a LoRA ({error}): fetch the file again") from error
    weights = {key if key.endswith(".weight") else f"{key}.weight": value for key, value in state.items()}
    settings = lora_settings(weights, unet, path)
    if settings is None:
        raise CheckpointError(f"{path} has no LoRA for a UNet: give the adapter's LoRA file")
    return weights, settings


def _scaled(state: dict[str, Tensor], alphas: dict[str, float], path: Path) -> dict[str, Tensor]:
    """The state with every pair's alpha / rank multiplied into its second matrix. diffusers names an alpha after the
    first one."""
    result, unused = dict(state), set(alphas)
    for key, down in state.items():
        up = key.replace("down.weight", "up.weight")
        if f"{key}.alpha" not in alphas or up == key or up not in state or not len(down):
            continue
        unused.discard(f"{key}.alpha")
        result[up] = state[up] * (float(alphas[f"{key}.alpha"]) / len(down))
    if unused:
        raise CheckpointError(f"{path}: the scale {min(unused)} belongs to no pair of matrices: fetch the file again")
    return result
