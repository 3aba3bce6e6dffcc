"""Finds the weights in a folder of diffusers' layout, and reads their headers."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from faceclip.errors import CheckpointError
from faceclip.storage.regular import open_regular, read_settings

STEM = "diffusion_pytorch_model"
_REMEDY = "save or fetch the weights again"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def find_weights(folder: Path, *, variant: str | None = None) -> list[Path]:
    """Returns the files that diffusers reads from a model's folder: one file, or the pieces that an index names.

    Raises CheckpointError if there are none, or if an index names files that are not in the folder.
    """
    for chosen in dict.fromkeys((variant, None)):
        dotted = f".{chosen}" if chosen else ""
        for kind in ("safetensors", "bin"):
            index = folder / f"{STEM}.{kind}.index{dotted}.json"
            if index.exists():
                return _pieces(index)
            if (whole := folder / f"{STEM}{dotted}.{kind}").exists():
                return [whole]
    variants = sorted(filter(None, map(_variant_of, folder.glob(f"{STEM}*"))))
    hint = f": it was saved with variant={variants[0]!r}, which loading takes too" if variants else f"; {_REMEDY}"
    raise CheckpointError(f"{folder / STEM}.safetensors cannot be read: it is missing{hint}")


def read_header(path: Path) -> dict[str, Tensor]:
    """Reads names, shapes and types of the tensors of a weights file, as tensors without storage.

    Raises CheckpointError if the file is missing, damaged, not regular, or contains more than tensors.
    """
    try:
        with open_regular(path):
            pass
        if path.suffix != ".safetensors":
            return _pickled(path)
        header = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(name)
                dtype = _DTYPES.get(tensor.get_dtype(), torch.complex64)  # of a kind that no model of ours has
                header[name] = torch.empty(tensor.get_shape(), dtype=dtype, device="meta")
        return header
    except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {_REMEDY}") from error


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        found: Any = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged or holds more than tensors ({error}); {_REMEDY}") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds no dictionary of tensors; {_REMEDY}")
    return found


def _pieces(index: Path) -> list[Path]:
    places = read_settings(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise CheckpointError(f"{index}: weight_map does not name a file for each tensor; {_REMEDY}")
    for name in places.values():
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index}: weight_map names {name!r}, which is no file of this folder; {_REMEDY}")
    return [index.parent / name for name in sorted(set(places.values()))]


def _variant_of(path: Path) -> str | None:
    match = re.fullmatch(rf"{STEM}\.(?P<one>[^.]+?)(-\d{{5}}-of-\d{{5}})?\.(safetensors|bin)", path.name)
    match = match or re.fullmatch(rf"{STEM}\.(safetensors|bin)\.index\.(?P<one>[^.]+)\.json", path.name)
    return match["one"] if match else None
