"""Float32 matrix products on a CPU by oneDNN, where PyTorch's own route is slower.

PyTorch hands float32 products to MKL, which does not use the full vector width of every processor: on a 2-core AMD
EPYC (Zen 5, AVX-512) `torch.mm` computes 90 GFLOP/s per core and oneDNN 200. Both ship in the same binary; results
differ by rounding only.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@functools.cache
def has_onednn() -> bool:
    """Whether oneDNN's float32 product is there and worth it: not with narrow vectors, not in a build without it."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")  # what torch.compile calls for frozen linear layers


def uses_onednn(*tensors: Tensor) -> bool:
    """Whether `times_transpose` takes oneDNN for these."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and has_onednn()


def is_plain_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN computes this linear layer; what else `F.linear` takes, or refuses, is its own affair."""
    if not uses_onednn(x, weight, *([] if bias is None else [bias])) or x.ndim < 2 or weight.ndim != 2:
        return False
    fits = x.shape[-1] == weight.shape[1] and (bias is None or bias.shape == weight.shape[:1])
    return fits and x.numel() > 0 and weight.numel() > 0


def times_transpose(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (…, K) times the transpose of b (M, K), plus bias (M,) → (…, M). Without gradient; any strides will do."""
    if uses_onednn(a, b):
        # oneDNN reads a bias as if it lay in one piece.
        bias = None if bias is None else bias.contiguous()
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return F.linear(a, b, bias)


class OnednnLinear(torch.autograd.Function):
    """A linear layer x (N, K), weight (M, K), bias (M,) → (N, M) by oneDNN, its gradients too (first ones only).

    Float32 on the CPU, no size zero. As PyTorch's own it keeps for backward what the gradients need: of a frozen layer
    not the input.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return times_transpose(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            times_transpose(gradient, weight.T) if wants_x else None,
            times_transpose(gradient.T, x.T) if wants_weight else None,
            gradient.sum(0) if wants_bias else None,
        )
