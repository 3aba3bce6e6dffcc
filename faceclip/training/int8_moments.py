"""AdamW whose moments take 2.03 bytes per weight in place of 8: 8-bit optimizers (Dettmers et al. 2022,
arXiv:2110.02861) in plain torch, on any device.

Each block of 256 values has a scale. The second moment is stored by its logarithm, and the first moment by its ratio to
the root of the stored second one. Both therefore keep their precision for small values next to large ones; a first
moment stored by itself would be rounded to a value that is large compared with its second moment, and the step would
explode. Values are rounded up or down by a dither that depends on place and step alone. It is unbiased over the steps,
whereas rounding to the nearest value would freeze the moments, and a resumed run rounds exactly like an unbroken one.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 256
SMALLEST = 4096  # weights; the moments of smaller tensors stay in float32
CHUNK = 2**22  # weights of a tensor that are updated at a time
OCTAVES = 32.0  # range of the stored second moments, below the largest of their block
_NAMES = ("ratio", "ratio_scale", "second", "second_scale")
_PLACE, _STEP = 0.6180339887498949, 0.7548776662466927  # irrational: the dither visits all values evenly


class Int8AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` with the moments of all but small tensors in 8 bits.

    The engine may set `found_inf` (); if it is 1, no weight changes.
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and is_large(parameter):
                    self._step_large(parameter, parameter.grad, group)
                    parameter.grad = None  # AdamW passes over it, and its memory is free
        return super().step(closure)

    def _step_large(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(_zeros(parameter))
        state["step"] += 1
        count, (beta1, beta2) = int(state["step"]), group["betas"]
        rate: float = group["lr"]
        keep: float | Tensor = 1.0
        if self.found_inf is not None:
            gradient, keep = torch.where(self.found_inf > 0, 0.0, gradient), 1 - self.found_inf
        size, shift = rate / (1 - beta1**count), math.sqrt(1 - beta2**count)
        weights, gradients = parameter.view(-1), gradient.reshape(-1)
        for start in range(0, parameter.numel(), CHUNK):
            here = slice(start, min(start + CHUNK, parameter.numel()))
            blocks = slice(start // BLOCK, -(-here.stop // BLOCK))
            length, dither = here.stop - start, _dither(blocks, count, parameter.device)
            second = from_log(state["second"][blocks], state["second_scale"][blocks]).view(-1)[:length]
            ratio = from_linear(state["ratio"][blocks], state["ratio_scale"][blocks]).view(-1)[:length]
            first = ratio.mul_(second.sqrt())
            g = gradients[here].float()
            first.lerp_(g, 1 - beta1)
            second.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            w = weights[here]
            w.mul_(1 - rate * group["weight_decay"] * keep)
            w.sub_(first / (second.sqrt() / shift + group["eps"]) * (size * keep))
            stored, scale = to_log(_blocks(second), dither)
            state["second"][blocks], state["second_scale"][blocks] = stored, scale
            ratio = (_blocks(first) / from_log(stored, scale).sqrt()).masked_fill_(stored == 0, 0.0)
            state["ratio"][blocks], state["ratio_scale"][blocks] = to_linear(ratio, (dither + 0.5) % 1)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restores a state, keeping moments in 8 bits, which torch's own method would cast to the weights' type."""
        kept: dict[int, dict[str, Tensor]] = {}
        plain: dict[int, dict[str, Tensor]] = {}
        for index, values in state_dict["state"].items():
            (kept if "ratio_scale" in values else plain)[index] = values
        super().load_state_dict(dict(state_dict) | {"state": plain})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, values in kept.items():
            parameter = parameters[index]
            moments = {name: values[name].to(parameter.device, copy=True) for name in _NAMES}
            self.state[parameter] = {"step": values["step"].clone().cpu(), **moments}


def is_large(parameter: Tensor) -> bool:
    """Returns whether the moments of this tensor are kept in 8 bits."""
    return parameter.numel() >= SMALLEST and parameter.is_contiguous()


def moment_bytes(parameter: Tensor) -> int:
    """Returns the bytes of a tensor's moments."""
    if not is_large(parameter):
        return 8 * parameter.numel()
    return -(-parameter.numel() // BLOCK) * (2 * BLOCK + 8)


def to_linear(values: Tensor, dither: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes values (N, 256) linearly to int8 with a dither (N, 256) in [0, 1); returns these and the scales (N,
    1)."""
    scale = values.abs().amax(dim=1, keepdim=True)
    steps = values / scale.clamp(min=torch.finfo(torch.float32).tiny) * 127
    return (steps + dither).floor().clamp(-127, 127).to(torch.int8), scale


def from_linear(stored: Tensor, scale: Tensor) -> Tensor:
    """Returns the values that `to_linear` stored, as float32."""
    return stored.float() * (scale / 127)


def to_log(values: Tensor, dither: Tensor) -> tuple[Tensor, Tensor]:
    """Quantizes values (N, 256) ≥ 0 logarithmically to uint8; returns these and the scales (N, 1).

    0 stands for zero, and 1 to 255 for values from `OCTAVES` below the scale up to the scale.
    """
    scale = values.amax(dim=1, keepdim=True)
    ratio = values / scale.clamp(min=torch.finfo(torch.float32).tiny)
    steps = 255 + ratio.clamp(min=2.0 ** (-OCTAVES)).log2() * (254 / OCTAVES)
    stored = (steps + dither).floor().clamp(1, 255)
    return stored.masked_fill(values == 0, 0).to(torch.uint8), scale


def from_log(stored: Tensor, scale: Tensor) -> Tensor:
    """Returns the values that `to_log` stored, as float32."""
    return (torch.exp2((stored.float() - 255) * (OCTAVES / 254)) * scale).masked_fill(stored == 0, 0.0)


def _zeros(parameter: Tensor) -> dict[str, Tensor]:
    count = -(-parameter.numel() // BLOCK)
    device = parameter.device
    return {
        "step": torch.zeros((), dtype=torch.float32),
        "ratio": torch.zeros(count, BLOCK, dtype=torch.int8, device=device),
        "ratio_scale": torch.zeros(count, 1, device=device),
        "second": torch.zeros(count, BLOCK, dtype=torch.uint8, device=device),
        "second_scale": torch.zeros(count, 1, device=device),
    }


def _blocks(values: Tensor) -> Tensor:
    return F.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)


def _dither(blocks: slice, step: int, device: torch.device) -> Tensor:
    """Returns the dither (N, 256) in [0, 1) of these blocks of a tensor at a step."""
    places = torch.arange(blocks.start * BLOCK, blocks.stop * BLOCK, device=device, dtype=torch.float64)
    return (places.mul_(_PLACE).add_(step * _STEP % 1) % 1).float().clamp_(max=1 - 2**-24).view(-1, BLOCK)
