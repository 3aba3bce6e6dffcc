"""Muon for matrices and kernels, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) updates weights along the orthogonalized momentum,
so that all directions of a weight learn at the same rate. `torch.optim.Muon` accepts only matrices; here a kernel (O,
I, h, w) is treated as the matrix (O, I·h·w). Updates are scaled to the size of AdamW's (Liu et al. 2025,
arXiv:2502.16982, section 2.2), so that both share the learning rate and the weight decay.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration in Jordan's post
ITERATIONS = 5
MOMENTUM = 0.95
_OUTER = ("conv_in.", "conv_out.", "embed")  # layers between pixels, ids or latents and the network stay with AdamW


def orthogonalized(matrix: Tensor) -> Tensor:
    """Returns a matrix (R, C) in bf16 with the singular vectors of `matrix` and singular values of about 1."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16().T if tall else matrix.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class MuonAdamW(torch.optim.AdamW):
    """AdamW that updates its groups with ``"muon": True`` by Muon with Nesterov momentum.

    The engine may set `found_inf` (); if it is 1, no weight changes.
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"] if group.get("muon") else ():
                if parameter.grad is not None:
                    self._orthogonal_step(parameter, parameter.grad, group)
                    parameter.grad = None  # AdamW passes over it
        return super().step(closure)

    def _orthogonal_step(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum, rate = state["momentum"], group["lr"]
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf > 0, 0.0, gradient)
            rate = rate * (1 - self.found_inf)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalized(gradient.lerp(momentum, MOMENTUM).flatten(1))
        rows, columns = update.shape
        parameter.mul_(1 - rate * group["weight_decay"])
        scale = 0.2 * math.sqrt(max(rows, columns))
        step = update.reshape(parameter.shape).to(parameter.dtype)
        if isinstance(rate, Tensor):
            parameter.sub_(step * (rate * scale))
        else:
            parameter.add_(step, alpha=-rate * scale)


def muon_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Returns the groups for `MuonAdamW`: Muon updates inner matrices and kernels; AdamW updates first and last layers
    and embeddings with weight decay, and biases, gains and scalars without."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.ndim < 2:
            free.append(parameter)
        else:
            (outer if any(word in name for word in _OUTER) else inner).append(parameter)
    groups = [
        {"params": inner, "weight_decay": weight_decay, "muon": True},
        {"params": outer, "weight_decay": weight_decay, "muon": False},
        {"params": free, "weight_decay": 0.0, "muon": False},
    ]
    return [group for group in groups if group["params"]]
