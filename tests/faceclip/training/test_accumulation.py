"""Gradients of a large batch in chunks equal those of the single batch, logit scale and bias included."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from faceclip.losses import sigmoid_contrastive_loss
from faceclip.training.accumulation import accumulate_exactly, first_pass, pull_back

ROWS, WIDTH = 24, 10


class Encoder(nn.Module):
    """Two projections and the parameters of the loss; optional dropout."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8))
        self.target = nn.Linear(WIDTH, 8)
        self.log_scale = nn.Parameter(torch.tensor(1.5))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def features(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"query": F.normalize(self.query(rows), dim=1), "target": F.normalize(self.target(rows), dim=1)}

    def loss(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        who = torch.arange(ROWS) // 2
        return sigmoid_contrastive_loss(features["query"], features["target"], self.log_scale, self.bias, who, who)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("sizes", [[24], [8, 8, 8], [5, 12, 7]])
def test_equals_the_single_large_batch(sizes):
    torch.manual_seed(0)
    model, rows = Encoder(dropout=0.0), torch.randn(ROWS, WIDTH)
    whole = model.loss(model.features(rows))
    whole.backward()
    expected = gradients(model)
    value = accumulate_exactly(model.features, rows.split(sizes), model.loss)
    assert not value.requires_grad
    assert value.item() == pytest.approx(whole.item(), rel=1e-6)
    for name, gradient in gradients(model).items():
        assert gradient.abs().max() > 1e-6
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


def test_random_state_of_the_first_run_is_used_again():
    torch.manual_seed(0)
    model, rows = Encoder(dropout=0.5).train(), torch.randn(ROWS, WIDTH)
    chunks = rows.split(8)
    torch.manual_seed(1)
    parts = [model.features(chunk) for chunk in chunks]
    model.loss({name: torch.cat([part[name] for part in parts]) for name in parts[0]}).backward()
    expected, following = gradients(model), torch.rand(1)
    torch.manual_seed(1)
    accumulate_exactly(model.features, chunks, model.loss)
    assert torch.equal(torch.rand(1), following)  # what comes after the step draws as if nothing ran twice
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


def test_generators_beside_torchs_own_are_used_again() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    model, rows = Encoder(dropout=0.0), torch.randn(ROWS, WIDTH)
    drawn: list[list[float]] = []

    def encode(chunk: torch.Tensor) -> dict[str, torch.Tensor]:
        drawn.append([torch.rand(1, generator=generator).item() for generator in generators])
        return model.features(chunk)

    first = first_pass(encode, rows.split(12), model.loss, generators=generators)
    for number in (1, 0):
        with first.replayed(number):
            encode(rows[:12])
        assert drawn[-1] == drawn[number]
    encode(rows[:12])
    assert drawn[-1] not in drawn[:-1]  # later draws are not affected


def test_the_loss_own_gradients_are_returned_on_request() -> None:
    """For a trainer that divides them among its processes: nothing is added to `.grad`."""
    torch.manual_seed(0)
    model, rows = Encoder(dropout=0.0), torch.randn(ROWS, WIDTH)
    model.loss(model.features(rows)).backward()
    expected = gradients(model)
    unused = torch.ones(1, requires_grad=True)
    parameters = [model.log_scale, unused, model.bias]
    first = first_pass(model.features, rows.split([5, 12, 7]), model.loss, parameters=parameters)
    torch.testing.assert_close(first.own[0], expected["log_scale"])
    torch.testing.assert_close(first.own[2], expected["bias"])
    assert first.own[1] is None and all(parameter.grad is None for parameter in model.parameters())
    assert [len(cotangent["query"]) for cotangent in first.cotangents] == [5, 12, 7]
    for chunk, cotangents in zip(rows.split([5, 12, 7]), first.cotangents, strict=True):
        pull_back(model.features(chunk), cotangents).backward()
    for name in ("query.0.weight", "target.weight"):
        torch.testing.assert_close(model.get_parameter(name).grad, expected[name], atol=1e-6, rtol=1e-5)


def test_frozen_targets_and_bad_chunks():
    torch.manual_seed(0)
    model, rows = Encoder(dropout=0.0), torch.randn(ROWS, WIDTH)
    model.target.requires_grad_(False)
    accumulate_exactly(model.features, rows.split(6), model.loss)
    assert model.target.weight.grad is None
    assert model.bias.grad is not None
    with pytest.raises(ValueError, match="empty"):
        accumulate_exactly(model.features, [], model.loss)
    with pytest.raises(ValueError, match="chunk 1 has features"):
        accumulate_exactly(lambda n: {f"f{n}": rows}, [0, 1], model.loss)
