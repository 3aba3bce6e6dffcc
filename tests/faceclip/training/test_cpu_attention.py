"""The explicit attention equals PyTorch's operator, and is taken only where it is faster."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from faceclip.training.cpu_attention import cpu_attention, explicit_attention


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


def test_context_swaps_only_sixteen_bit_calls_and_restores() -> None:
    fused = F.scaled_dot_product_attention
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(2, 5, 16)

    def operators(autocast: bool) -> set[str]:
        with (
            cpu_attention(),
            torch.profiler.profile() as profile,
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            attention(x, x, x, need_weights=False)
        return {event.key for event in profile.key_averages()}

    assert not any("scaled_dot_product" in name for name in operators(autocast=True))
    assert any("scaled_dot_product" in name for name in operators(autocast=False))
    assert F.scaled_dot_product_attention is fused


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_equal_those_of_the_operator(recompute: bool) -> None:
    torch.manual_seed(0)
    given = torch.randn(3, 2, 4, 7, 8, dtype=torch.bfloat16)

    def gradients() -> Tensor:
        inputs = given.clone().requires_grad_()

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value)

        found = checkpoint(attend, *inputs, use_reentrant=False) if recompute else attend(*inputs)
        found.float().square().sum().backward()
        return inputs.grad

    expected = gradients()
    with cpu_attention():
        torch.testing.assert_close(gradients(), expected, atol=0.05, rtol=0.05)
