"""Faster training on a CPU, numbers unchanged but for rounding: other kernels for the same operations."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from faceclip.cpu.attention import explicit_attention
from faceclip.cpu.matmul import OnednnLinear, is_plain_product

_LINEAR = torch._C._nn.linear  # F.linear, unless DeepSpeed ZeRO-3 has replaced it


@contextmanager
def cpu_training() -> Iterator[None]:
    """Context in which attention of 16-bit CPU tensors takes explicit products (`faceclip.cpu.attention`), and linear
    layers of float32 CPU tensors take oneDNN's, forward and backward (`faceclip.cpu.matmul`).

    Other dtypes, devices and grouped queries keep PyTorch's kernels, as do linear layers under autocast and in graphs
    that are compiled. Attributes of `torch.nn.functional` are replaced, since `torch.nn.MultiheadAttention`
    (open_clip's towers) and diffusers look them up there, and gradient checkpointing runs layers again in backward.
    """
    fused, plain = F.scaled_dot_product_attention, F.linear

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # The fused operator is on autocast's bf16 list, so an fp32 query under autocast counts as 16 bits.
        half = query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if query.device.type == "cpu" and half and not kwargs.get("enable_gqa"):
            kwargs.pop("enable_gqa", None)
            return explicit_attention(query, *args, **kwargs)
        return fused(query, *args, **kwargs)

    F.scaled_dot_product_attention = attention
    if plain is _LINEAR:  # ZeRO-3's gathers weights: leave it alone
        F.linear = onednn_linear
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.linear = fused, plain


def onednn_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by oneDNN where it is the faster one."""
    # What is being compiled must not be asked more than this.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or not is_plain_product(input, weight, bias):
        return _LINEAR(input, weight, bias)
    # Rows outside of the function: what it returned could not be changed in place if it were a view.
    return OnednnLinear.apply(input.flatten(0, -2), weight, bias).unflatten(0, input.shape[:-1])
