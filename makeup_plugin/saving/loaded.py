"""Checks of the parts that diffusers has loaded by itself, by the files that they come from.

diffusers and transformers draw random numbers for what is missing in weights, and only log it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import MultiControlNetModel
from torch import nn
from transformers import PreTrainedModel

from faceclip.storage.loading import check_finite
from makeup_plugin.saving.clip_parts import load_clip_parts
from makeup_plugin.saving.index import check_pipeline
from makeup_plugin.saving.quantized import is_quantized

_STEMS = ("diffusion_pytorch_model", "model")  # of diffusers and of transformers
_ENDINGS = (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")


def check_loaded(directory: Path, components: Mapping[str, Any]) -> None:
    """Checks the networks among a pipeline's components: those that come from its folder `directory` as strictly as our
    own loading does, and that all numbers are finite. Of networks that the caller gave in their place, and of files of
    a variant alone, only the numbers are looked at; quantized ones are passed over.

    Raises CheckpointError, which names file and tensor.
    """
    networks = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
    networks = {name: network for name, network in networks.items() if not is_quantized(network)}
    stored = [name for name, network in networks.items() if _comes_from(directory / name, network)]
    theirs = [name for name in stored if isinstance(networks[name], PreTrainedModel)]
    check_pipeline(directory, [name for name in stored if name not in theirs], (), given=(), variant=None)
    load_clip_parts(directory, theirs, given={})
    for name, network in networks.items():
        check_finite(network.state_dict(), directory / name)


def _comes_from(folder: Path, network: Any) -> bool:
    first = network.nets[0] if isinstance(network, MultiControlNetModel) else network
    origin: Any = getattr(getattr(first, "config", None), "_name_or_path", None)
    plain = any((folder / f"{stem}{ending}").exists() for stem in _STEMS for ending in _ENDINGS)
    return origin is not None and Path(origin) == folder and plain
