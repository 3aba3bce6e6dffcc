"""Moments of 8 bits: they learn what float32 learns, take a quarter of the memory, and resume to the bit."""

import pytest
import torch
from torch import nn

from faceclip.errors import ConfigError
from faceclip.training import TrainerConfig
from faceclip.training.int8_moments import BLOCK, Int8AdamW, from_linear, from_log, moment_bytes, to_linear, to_log
from faceclip.training.optimization import make_optimizer


def learn(kind: type[torch.optim.AdamW], steps: int, *, keep: int | None = None):
    """Losses of a regression; with `keep` the optimizer's state goes through a state dict at that step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.GELU(), nn.Linear(100, 64))
    inputs, wanted = torch.randn(256, 64), torch.randn(256, 64)
    optimizer, losses = kind(model.parameters(), lr=3e-3, betas=(0.9, 0.99)), []
    for step in range(steps):
        if step == keep:
            state = optimizer.state_dict()
            optimizer = kind(model.parameters(), lr=3e-3, betas=(0.9, 0.99))
            optimizer.load_state_dict(state)
        loss = (model(inputs) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model, optimizer


def test_eight_bits_learn_as_float32_does():
    exact, _, _ = learn(torch.optim.AdamW, 200)
    found, _, _ = learn(Int8AdamW, 200)
    assert exact[-1] < 0.5 * exact[0]
    assert found[-1] == pytest.approx(exact[-1], rel=0.03)
    assert found[0] == exact[0] and found[-1] != exact[-1]


@pytest.mark.parametrize("small", [1e-2, 1e-4])
def test_small_gradients_beside_large_ones_do_not_blow_up_the_step(small):
    """One of the 256 gradients of a block is up to 10,000 times as large as the others."""
    spread = {}
    for kind in (torch.optim.AdamW, Int8AdamW):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.zeros(64, BLOCK))
        optimizer = kind([weight], lr=1e-3, betas=(0.9, 0.99), weight_decay=0)
        sizes, largest = torch.full((64, BLOCK), small), 0.0
        sizes[:, 0] = 1
        for step in range(200):
            before = weight.detach().clone()
            weight.grad = sizes * torch.randn(64, BLOCK)
            optimizer.step()
            if step > 100:
                largest = max(largest, float((weight.detach() - before)[:, 1:].abs().max()) / 1e-3)
        assert largest < 1.5  # in steps of the learning rate
        spread[kind] = float(weight.detach()[:, 1:].std())
    assert spread[Int8AdamW] == pytest.approx(spread[torch.optim.AdamW], rel=0.02)


def test_a_state_that_was_saved_resumes_to_the_bit():
    whole, first, _ = learn(Int8AdamW, 12)
    resumed, second, _ = learn(Int8AdamW, 12, keep=6)
    assert whole == resumed
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_moments_take_two_bytes_per_weight():
    _, model, optimizer = learn(Int8AdamW, 1)
    weight = model[0].weight
    held = sum(v.numel() * v.element_size() for v in optimizer.state[weight].values() if v.ndim)
    assert held == moment_bytes(weight) < 2.05 * weight.numel()
    assert optimizer.state[model[0].bias]["exp_avg"].dtype == torch.float32 and moment_bytes(model[0].bias) == 800


def test_what_is_stored_is_right_in_the_mean_and_small_values_stay_above_zero():
    torch.manual_seed(0)
    values = torch.randn(4, BLOCK)
    squares = values.square() * torch.logspace(-8, 0, BLOCK)
    squares[0, 0] = 0
    linear, log = [], []
    for step in range(64):
        dither = torch.full_like(values, (step + 0.5) / 64)
        linear.append(from_linear(*to_linear(values, dither)))
        log.append(from_log(*to_log(squares, dither)))
        assert log[-1][0, 0] == 0 and (log[-1][squares > 0] > 0).all()
    torch.testing.assert_close(torch.stack(linear).mean(0), values, atol=2e-3, rtol=0)
    torch.testing.assert_close(torch.stack(log).mean(0), squares, atol=4e-9, rtol=5e-3)  # 2^-32 of the largest


def test_a_step_that_is_not_finite_changes_no_weight():
    _, model, optimizer = learn(Int8AdamW, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    for group in optimizer.param_groups:
        group["fused"] = True  # as the trainer has it: the small tensors' kernel reads the flag, too
    optimizer.step()
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


@pytest.mark.parametrize(("settings", "whole"), [({"optimizer": "muon"}, True), ({}, False)])
def test_muon_and_split_weights_are_rejected(settings, whole):
    config = TrainerConfig(moments="int8", **settings)
    with pytest.raises(ConfigError, match=r"trainer\.moments"):
        make_optimizer(config, {"weight": nn.Parameter(torch.zeros(8, 8))}, None, whole=whole)
