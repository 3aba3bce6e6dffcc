"""Self-attention of 16 bits on a CPU without copies of its weights.

`nn.MultiheadAttention` with `batch_first` projects a transposed view (L, B, width) of what it is given. For a view
PyTorch's `linear` with a frozen weight multiplies L matrices of B rows, and in 16 bits it first writes L copies of the
weight: 4 GiB for one layer of ViT-bigG-14 at 257 tokens, and 45 times the time of one product.
"""

from typing import Any

import torch
from torch import Tensor, nn


def project_at_once(tower: nn.Module) -> None:
    """Lets every `nn.MultiheadAttention` of a CLIP tower project all tokens in one product, on a CPU in 16 bits.

    Elsewhere nothing changes; weights and their names are the same everywhere.
    """
    for module in tower.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.register_forward_pre_hook(_by_position)


def _by_position(attention: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The same (B, L, width), lying in memory as (L, B, width), so that the transposed view is no view any more."""
    query, key, value, *rest = inputs
    half = query.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled("cpu")
    if query.device.type != "cpu" or not half or query.ndim != 3 or query is not key or key is not value:
        return None
    own: Tensor = query.transpose(0, 1).contiguous().transpose(0, 1)
    return (own, own, own, *rest)
