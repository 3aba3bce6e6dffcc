"""The explicit attention equals PyTorch's operator."""

import pytest
import torch
import torch.nn.functional as F

from faceclip.cpu.attention import explicit_attention


@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}])
def test_equals_the_operator(mask: str | None, options: dict) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 8)
    if mask is not None and "is_causal" not in options:
        allowed = torch.rand(7, 7) > 0.3
        allowed[:, 0] = True
        options = options | {"attn_mask": allowed if mask == "bool" else torch.randn(7, 7)}
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(explicit_attention(query, key, value, **options), expected)
