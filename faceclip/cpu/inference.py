"""Faster inference on a CPU, numbers unchanged but for rounding: other kernels for the same products.

Within `cpu_inference`, linear layers of float32 tensors take oneDNN (`faceclip.cpu.matmul`), and attention of 16-bit
tensors takes explicit products (`faceclip.cpu.attention`). Nothing changes where a gradient is recorded, on other
devices, under autocast, or while a graph is compiled.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from faceclip.cpu.attention import explicit_attention
from faceclip.cpu.matmul import has_onednn, is_plain_product, times_transpose
from faceclip.cpu.training import onednn_linear


class _CpuKernels(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not kwargs:
            return _linear(*args)
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is F.multi_head_attention_forward and _is_plain_self_attention(args, kwargs):
            return _self_attention(args, kwargs["attn_mask"]), None
        return func(*args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return times_transpose(x, weight, bias) if is_plain_product(x, weight, bias) else F.linear(x, weight, bias)


def _attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if query.dtype in (torch.bfloat16, torch.float16) and not kwargs.get("enable_gqa"):
        kwargs.pop("enable_gqa", None)
        return explicit_attention(query, *args, **kwargs)
    return F.scaled_dot_product_attention(query, *args, **kwargs)


def _is_plain_self_attention(args: tuple, kwargs: dict) -> bool:
    """Whether a call of `multi_head_attention_forward` is what CLIP's blocks make of it."""
    query, key, value, _, _, in_weight, _, bias_k, bias_v, add_zero, _, _, _ = args
    plain = query is key and key is value and query.ndim == 3 and in_weight is not None
    extras = (bias_k, bias_v, kwargs.get("key_padding_mask"), kwargs.get("q_proj_weight"), kwargs.get("static_k"))
    switches = (add_zero, kwargs["training"], kwargs["need_weights"], kwargs.get("is_causal"))
    return plain and all(x is None for x in extras) and not any(switches)


def _self_attention(args: tuple, mask: Tensor | None) -> Tensor:
    """(L, B, width) → the same: what the inner function computes, from the functions above."""
    x, _, _, width, heads, in_weight, in_bias, _, _, _, _, out_weight, out_bias = args
    query, key, value = _linear(x, in_weight, in_bias).unflatten(-1, (3, heads, width // heads)).permute(2, 1, 3, 0, 4)
    mixed = _attention(query, key, value, attn_mask=mask)
    return _linear(mixed.permute(2, 0, 1, 3).flatten(2), out_weight, out_bias)


def cpu_inference(device: torch.device) -> AbstractContextManager:
    """Context for a forward pass on `device`; it does nothing where nothing is to be won."""
    if (
        device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        # Replaced by others, as DeepSpeed ZeRO-3 does to gather weights: leave it alone.
        or F.linear not in (torch._C._nn.linear, onednn_linear)
        or not has_onednn()
    ):
        return nullcontext()
    return _CpuKernels()
