"""The kernels of CPU inference give what PyTorch's own give, and are taken only where they may be."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from faceclip.cpu import matmul as cpu_matmul
from faceclip.cpu.inference import cpu_inference
from faceclip.cpu.matmul import has_onednn, times_transpose
from faceclip.towers.text import TextTower, tokenize

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not has_onednn(), reason="no AVX-512 or no oneDNN: PyTorch's own kernels are used")


@torch.no_grad()
def test_products_with_any_strides():
    a, b, bias = torch.randn(3, 5, 40), torch.randn(30, 40), torch.randn(30)
    torch.testing.assert_close(times_transpose(a, b, bias), F.linear(a, b, bias), atol=1e-4, rtol=1e-5)
    square = torch.randn(40, 40)
    torch.testing.assert_close(times_transpose(square.T, square.T), square.T @ square, atol=1e-4, rtol=1e-5)
    for rows in (0, 1):
        torch.testing.assert_close(times_transpose(a[0, :rows], b), a[0, :rows] @ b.T, atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_tower_gives_the_same(dtype):
    torch.manual_seed(0)
    tower = TextTower(width=64, layers=2, heads=4, embed_dim=32).eval().to(dtype)
    tokens = tokenize(["a person with a red hat", "", "word " * 100])
    plain = tower(tokens)
    with cpu_inference(CPU) as mode:
        assert mode is not None
        found = tower(tokens)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float64: 1e-12}[dtype]
    assert found.hidden.dtype == dtype
    torch.testing.assert_close(found.hidden, plain.hidden, atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["weights", "keys", "padding", "bias_kv"])
def test_other_attention_is_left_alone(variant):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 2, batch_first=True, add_bias_kv=variant == "bias_kv").eval()
    x, other = torch.randn(2, 5, 16), torch.randn(2, 6, 16)
    inputs = (x, other, other) if variant == "keys" else (x, x, x)
    options = {"need_weights": variant == "weights"}
    if variant == "padding":
        options["key_padding_mask"] = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    plain = layer(*inputs, **options)
    with cpu_inference(CPU):
        found = layer(*inputs, **options)
    torch.testing.assert_close(found[0], plain[0], atol=1e-5, rtol=0)
    assert (found[1] is None) == (plain[1] is None)


def test_not_where_a_gradient_is_recorded_nor_under_autocast_nor_elsewhere(monkeypatch):
    layer, x = nn.Linear(4, 3), torch.randn(2, 4)
    with cpu_inference(CPU):
        layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), cpu_inference(CPU):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad(), cpu_inference(torch.device("cuda")) as mode:
        assert mode is None
    monkeypatch.setattr(cpu_matmul, "has_onednn", lambda: False)
    assert torch.equal(times_transpose(x, layer.weight.detach()), F.linear(x, layer.weight.detach()))
