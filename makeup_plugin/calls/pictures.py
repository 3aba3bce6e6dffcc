"""Pictures as users give them: tensors become arrays, and addresses on the web the bytes behind them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.calls.request import Request
from makeup_plugin.remote import fetch_picture, is_url

ARGUMENTS = ("image", "shading_image", "shading_map", "control_image")


def with_pictures(request: Request) -> Request:
    """The request with pictures that `faceclip.faces.load_image` reads. Raises what `readable` raises."""
    changed = {name: readable(name, getattr(request, name), allow_urls=request.allow_urls) for name in ARGUMENTS}
    return replace(request, **changed)


def readable(name: str, value: Any, *, allow_urls: bool = False) -> Any:
    """One picture, or lists of them, without tensors and addresses.

    Tensors are (3,H,W) or (N,3,H,W), uint8 or floats in [0,1].

    Raises ConfigError, which names the argument, for other tensors and for addresses that are not allowed, and what
    `makeup_plugin.remote.fetch_picture` raises.
    """
    if isinstance(value, list | tuple):
        return [readable(name, one, allow_urls=allow_urls) for one in value]
    if isinstance(value, Tensor):
        return _array(name, value)
    if not is_url(value):
        return value
    if not allow_urls:
        raise ConfigError(f"{name}: {value!r} is on the web; give allow_urls=True to fetch it, or a file")
    return fetch_picture(value, name=f"{name} ({value})")


def _array(name: str, value: Tensor) -> Any:
    mask = name == "mask_image"
    if value.ndim not in (3, 4) or value.shape[-3] not in ((1, 3) if mask else (3,)) or not value.numel():
        one = "1 or 3" if mask else "3"
        raise ConfigError(f"{name}: a tensor must be ({one}, H, W) or (N, {one}, H, W), got {tuple(value.shape)}")
    if value.is_meta or value.layout != torch.strided or value.is_quantized:
        raise ConfigError(f"{name}: a tensor must hold all of its pixels, got a sparse, quantized or meta tensor")
    if mask and value.dtype == torch.bool:
        value = value.to(torch.uint8) * 255
    if value.dtype != torch.uint8 and not value.is_floating_point():
        raise ConfigError(f"{name}: a tensor must hold uint8 or floats in [0, 1], got {value.dtype}")
    pixels = value.detach().cpu()
    if pixels.dtype != torch.uint8:
        pixels = pixels.float()
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ConfigError(f"{name}: a tensor of floats must lie in [0, 1]; map [-1, 1] there by x / 2 + 0.5")
    return np.ascontiguousarray(pixels.movedim(-3, -1).numpy())
