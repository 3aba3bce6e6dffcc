"""Published adapter files: every layout in which they come, read as {root: {name: tensor}} without running code.

.bin, .pt, .pth   a pickle of {"image_proj": {...}, "ip_adapter": {...}}, in Face-MakeUp's files with "controlnet"
.safetensors      the same, with names "image_proj.…", "ip_adapter.…"
either            accelerate's raw state of a training: names "image_proj_model.…", "adapter_modules.…",
                  "contorlnet.…" (sic) and "unet.…", whose attention processors hold the adapter once more, or,
                  where equal tensors are stored once, alone. The rest of "unet.…" is the frozen base and not read.
"""

from __future__ import annotations

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from faceclip.errors import BAD_INPUT, CheckpointError
from faceclip.storage.loading import check_finite
from faceclip.storage.regular import open_regular

ROOTS = ("image_proj", "ip_adapter", "controlnet")
_RAW = {
    "image_proj_model": "image_proj",
    "adapter_modules": "ip_adapter",
    "contorlnet": "controlnet",  # as the published training code spells it
    "controlnet": "controlnet",
}
_PROCESSOR = re.compile(r"(.+\.processor)\.(.+)")
_REMEDY = "fetch the file again"
State = dict[str, dict[str, Tensor]]
logger = logging.getLogger(__name__)


def read_adapter_file(path: str | Path, roots: Sequence[str], unet: UNet2DConditionModel) -> State:
    """The tensors of a published file by root, which must be exactly `roots`.

    unet: gives the order of attention layers, by which accelerate's raw layout is read.

    Raises:
        CheckpointError: the file is missing, damaged, holds more than tensors, other roots, or a tensor that no weight
            can be: without storage, sparse, expanded beyond its storage, of whole numbers, or with NaN or infinity.
            The message names the file and the tensor.
    """
    path = Path(path)
    found = _load(path)
    state = found if _is_nested(found) else _by_root(found, unet, path)
    if set(state) != set(roots):
        raise CheckpointError(
            f"{path}: expected the entries {', '.join(roots)}, found {_shown(state)}; give a file in a published layout"
        )
    for root, tensors in state.items():
        if not isinstance(tensors, dict) or not tensors:
            raise CheckpointError(f"{path}: {root} is not a dictionary of tensors: {_REMEDY}")
        _check_tensors(tensors, root, path)
    return state


def _load(path: Path) -> dict[Any, Any]:
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory: give the adapter file in it")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give the file of Face-MakeUp, IP-Adapter or InstantID")
    try:
        with open_regular(path):
            pass
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}): {_REMEDY}") from error
    except (pickle.UnpicklingError, EOFError, OSError, MemoryError, *BAD_INPUT) as error:
        raise CheckpointError(f"{path} is damaged or holds more than tensors: {error}") from error
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path} holds no tensors but {type(found).__name__}: give a published adapter file")
    for name in found:
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: the entry {name!r} is no name: {_REMEDY}")
    return found


def _is_nested(found: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, Tensor) for value in found.values())


def _by_root(found: Mapping[str, Any], unet: UNet2DConditionModel, path: Path) -> State:
    """The tensors of a flat file by root."""
    state: State = {}
    processors: dict[str, Tensor] = {}
    layers = {name: index for index, name in enumerate(unet.attn_processors)}
    for name, value in found.items():
        first, _, rest = name.partition(".")
        root = first if first in ROOTS else _RAW.get(first)
        if root is not None and rest:
            state.setdefault(root, {})[rest] = value
        elif first == "unet" and rest:
            match = _PROCESSOR.fullmatch(rest)
            if match and match[1] not in layers:
                raise CheckpointError(f"{path}: {name} belongs to no attention layer of this UNet")
            if match:
                processors[f"{layers[match[1]]}.{match[2]}"] = value
        else:
            raise CheckpointError(f"{path}: {name} is part of no published layout (entries {', '.join(ROOTS)})")
    if processors:
        state["ip_adapter"] = processors | state.get("ip_adapter", {})
        logger.info("%s is a training's raw state: the base's own weights in it are not read", path)
    return state


def _check_tensors(tensors: Mapping[Any, Any], root: str, path: Path) -> None:
    for name, value in tensors.items():
        where = f"{path}: {root}.{name}"
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{where} is no named tensor: {_REMEDY}")
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            kind = "has no storage" if value.is_meta else f"is {value.layout}"
            raise CheckpointError(f"{where} {kind}, expected a plain tensor: {_REMEDY}")
        if not value.is_floating_point():
            raise CheckpointError(f"{where} is {value.dtype}, expected floating point: {_REMEDY}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{where} is {tuple(value.shape)}, more numbers than the file holds (expanded): {_REMEDY}"
            )
    check_finite({f"{root}.{name}": value for name, value in tensors.items()}, path)


def _shown(state: Mapping[str, Any]) -> str:
    names = sorted(state)
    return f"{names[:8]}{' …' if len(names) > 8 else ''}"
