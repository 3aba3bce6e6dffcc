"""Attention by explicit matrix products, for training in bf16 on a CPU.

PyTorch's fused CPU kernel (2.14) computes the backward pass of bf16 attention several times more slowly than plain
matrix products do: forward and backward of (64, 6, 64, 32) take 67 ms fused and 12 ms explicit on one AMD EPYC core. In
float32 and in inference the fused kernel is as fast or faster, and stays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def cpu_attention() -> Iterator[None]:
    """Context in which bf16 attention of CPU tensors, also under autocast, takes `explicit_attention`.

    Other dtypes, devices and grouped queries keep PyTorch's kernel. The attribute of `torch.nn.functional` is replaced
    because `torch.nn.MultiheadAttention` (open_clip's towers) and diffusers look it up there, and because gradient
    checkpointing runs layers again in backward.
    """
    fused = F.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # The fused operator is on autocast's bf16 list, so an fp32 query under autocast counts as 16 bits.
        half = query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        if query.device.type == "cpu" and half and not kwargs.get("enable_gqa"):
            kwargs.pop("enable_gqa", None)
            return explicit_attention(query, *args, **kwargs)
        return fused(query, *args, **kwargs)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """softmax(q·kᵀ·scale + mask)·v for (…, L, D), (…, S, D); arguments of `scaled_dot_product_attention`."""
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask.to(scores.dtype)
    # In the dtype of the scores: under autocast, softmax would otherwise be promoted to fp32 and copied back.
    with torch.autocast(scores.device.type, enabled=False):
        weights = scores.softmax(dim=-1)
    return F.dropout(weights, dropout_p) @ value if dropout_p else weights @ value
