"""The kernels of CPU training give what PyTorch's own give, gradients included, and are taken only where wanted."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from faceclip.cpu.matmul import OnednnLinear, has_onednn
from faceclip.cpu.training import cpu_training
from faceclip.towers.text import TextTower, tokenize

onednn = pytest.mark.skipif(not has_onednn(), reason="no AVX-512 or no oneDNN: PyTorch's own products are used")


def test_context_swaps_only_sixteen_bit_calls_and_restores() -> None:
    fused = F.scaled_dot_product_attention
    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    x = torch.randn(2, 5, 16)

    def operators(autocast: bool) -> set[str]:
        with (
            cpu_training(),
            torch.profiler.profile() as profile,
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        ):
            attention(x, x, x, need_weights=False)
        return {event.key for event in profile.key_averages()}

    assert not any("scaled_dot_product" in name for name in operators(autocast=True))
    assert any("scaled_dot_product" in name for name in operators(autocast=False))
    assert F.scaled_dot_product_attention is fused


def gradients(tower: TextTower, *, recompute: bool = False) -> dict[str, torch.Tensor]:
    tower.zero_grad()
    tokens = tokenize(["a person with a red hat", "", "word " * 100])
    found = checkpoint(tower, tokens, use_reentrant=False) if recompute else tower(tokens)
    (found.hidden.square().sum() + found.embedding.sum()).backward()
    return {name: p.grad.clone() for name, p in tower.named_parameters() if p.grad is not None}


@onednn
@pytest.mark.parametrize("recompute", [False, True])
def test_a_tower_has_the_same_gradients(recompute: bool) -> None:
    torch.manual_seed(0)
    tower = TextTower(width=64, layers=2, heads=4, embed_dim=32)
    plain = gradients(tower)
    with cpu_training(), torch.profiler.profile() as profile:
        found = gradients(tower, recompute=recompute)
    assert any("OnednnLinear" in event.key for event in profile.key_averages())
    assert found.keys() == plain.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(found[name], expected, atol=1e-5 * float(expected.abs().max()) + 1e-6, rtol=0)


@onednn
def test_expanded_and_transposed_inputs() -> None:
    layer = nn.Linear(6, 5)
    x = torch.randn(6, 4, 3).permute(2, 1, 0).requires_grad_()  # (3, 4, 6)
    F.linear(x, layer.weight, layer.bias).sum().backward()  # the gradient of a sum has strides of zero
    expected = [x.grad, layer.weight.grad, layer.bias.grad]
    x.grad = None
    layer.zero_grad()
    with cpu_training():
        layer(x).sum().backward()
    torch.testing.assert_close([x.grad, layer.weight.grad, layer.bias.grad], expected, atol=1e-5, rtol=1e-5)


@onednn
def test_a_bias_with_gaps_and_changes_in_place() -> None:
    torch.manual_seed(0)
    weight, biases = torch.randn(5, 6, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    x = torch.randn(2, 3, 6)
    ends = []
    for kernels in (nullcontext(), cpu_training()):
        with kernels:
            y = F.linear(x, weight, biases[:, 1])
            y += 1
            F.relu_(y)
            ends.append([y, *torch.autograd.grad(y.sum(), [weight, biases])])
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=1e-5)


@onednn
def test_compiled_graphs_stay_whole() -> None:
    layer, x = nn.Linear(6, 5), torch.randn(4, 6)
    with cpu_training():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), layer(x))


@onednn
@pytest.mark.parametrize(("frozen", "kept"), [(("weight", "bias"), ["weight"]), ((), ["x", "weight"])])
def test_keeps_for_backward_what_the_gradients_need(frozen: tuple[str, ...], kept: list[str]) -> None:
    layer, x = nn.Linear(6, 5), torch.randn(4, 6, requires_grad=True)
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    names = {x.data_ptr(): "x", layer.weight.data_ptr(): "weight"}
    saved = []
    with cpu_training(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(names[t.data_ptr()]), id):
        layer(x)
    assert saved == kept


@onednn
def test_where_pytorch_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("taken")

    layer, double, x = nn.Linear(6, 5), nn.Linear(6, 5).double(), torch.randn(4, 6)
    monkeypatch.setattr(OnednnLinear, "apply", refuse)
    with cpu_training():
        with pytest.raises(AssertionError, match="taken"):
            layer(x)
        assert layer(x[0]).shape == (5,)
        assert layer(x[:0]).shape == (0, 5)
        assert F.linear(x, layer.weight, torch.ones(1)).shape == (4, 5)  # a bias that is broadcast
        assert F.linear(x, layer.weight[0]).shape == (4,)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(x[:, :3])
        assert double(x.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    monkeypatch.setattr(F, "linear", replaced := lambda *arguments: "gathered")  # as DeepSpeed ZeRO-3 does
    with cpu_training():
        assert F.linear is replaced
    assert F.linear is replaced
