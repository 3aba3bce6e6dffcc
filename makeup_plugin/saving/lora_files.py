"""The LoRA in an adapter's files, which is checked against a UNet before anything is allocated or changed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from faceclip.errors import CheckpointError
from faceclip.storage.loading import check_finite
from faceclip.storage.regular import open_regular

MAX_ALPHA = 1e6
MAX_TARGETS = 10_000
_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
# What `LoraSettings.build` writes: alternatives of plain names, which no name of a module takes long to compare with.
_WRITTEN = re.compile(r"\.\*\\\.\(\w+(\|\w+)*\)\\\.\(\w+(\\\.\w+)*(\|\w+(\\\.\w+)*)*\)", re.ASCII)
_REMEDY = "save or fetch the adapter again"


def check_lora_settings(config: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError, which begins with `where` and names the field, for a rank, an alpha or target modules
    that no adapter has. A regular expression is accepted only in the form that we write; others may match for hours.
    """
    rank, alpha, targets = (config[name] for name in ("rank", "alpha", "target_modules"))
    if isinstance(rank, bool) or rank < 1:
        raise CheckpointError(f"{where}: rank is {rank}, not a positive whole number; {_REMEDY}")
    if isinstance(alpha, bool) or not math.isfinite(alpha) or abs(alpha) > MAX_ALPHA:
        raise CheckpointError(f"{where}: alpha is {alpha}, not a number of at most {MAX_ALPHA:,.0f}; {_REMEDY}")
    if isinstance(targets, str):
        if len(targets) > MAX_TARGETS or not _WRITTEN.fullmatch(targets):
            raise CheckpointError(
                f"{where}: target_modules is the pattern {targets!r}, which save_adapter does not write:"
                " give a list of the modules' names"
            )
    elif not 0 < len(targets) <= MAX_TARGETS or not all(isinstance(t, str) and _NAME.fullmatch(t) for t in targets):
        raise CheckpointError(f"{where}: target_modules is no list of modules' names; {_REMEDY}")


def read_lora_file(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises CheckpointError when it is missing, damaged, no regular file, or holds
    anything but finite floating-point numbers."""
    try:
        with open_regular(path):
            pass
        weights = load_file(path)
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    for name, value in weights.items():
        if not value.is_floating_point():
            raise CheckpointError(f"{path}: {name} is {value.dtype}, expected floating point; {_REMEDY}")
    check_finite(weights, path)
    return weights


def check_lora(unet: nn.Module, weights: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> None:
    """Compares an adapter's tensors with those that its settings mean in a UNet.

    Raises CheckpointError naming the file and the first tensor that differs.
    """
    wanted = _shapes(unet, config, path)
    found = {key: tuple(value.shape) for key, value in weights.items()}
    if wanted != found:
        key = next(k for k in sorted({*wanted, *found}) if wanted.get(k) != found.get(k))
        raise CheckpointError(
            f"{path}: {key} is {found.get(key, 'missing')}"
            f" but this UNet needs {wanted.get(key, 'no such tensor')};"
            " load the adapter on the base model that it was trained on"
        )


def _shapes(unet: nn.Module, config: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    rank, targets = config["rank"], config["target_modules"]
    pattern = re.compile(targets) if isinstance(targets, str) else None
    shapes: dict[str, tuple[int, ...]] = {}
    used = set()
    for name, module in unet.named_modules():
        if pattern is not None:
            matches = [targets] if pattern.fullmatch(name) else []
        else:
            matches = [target for target in targets if name == target or name.endswith(f".{target}")]
        if not matches:
            continue
        used.update(matches)
        layer = getattr(module, "base_layer", module)  # below LoRAs of other origin
        if isinstance(layer, nn.Linear):
            first, second = (rank, layer.in_features), (layer.out_features, rank)
        elif isinstance(layer, nn.Conv2d):
            first = (rank, layer.in_channels // layer.groups, *layer.kernel_size)
            second = (layer.out_channels, rank, 1, 1)
        else:
            raise CheckpointError(
                f"{path}: target_modules means {name}, a {type(layer).__name__}, which has no LoRA; {_REMEDY}"
            )
        shapes[f"{name}.lora_A.weight"], shapes[f"{name}.lora_B.weight"] = first, second
    unknown = [] if pattern is not None and used else sorted({*([targets] if pattern else targets)} - used)
    if unknown:
        raise CheckpointError(f"{path}: target_modules names {unknown[0]!r}, which this UNet does not have; {_REMEDY}")
    return shapes


def written_targets(targets: Any) -> str | list[str]:
    """PEFT's target modules as JSON holds them."""
    return targets if isinstance(targets, str) else sorted(targets)
