"""Muon beside AdamW: the same numbers as PyTorch's own for matrices, kernels as matrices, and exact continuation."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from faceclip.errors import ConfigError
from faceclip.training import Trainer
from faceclip.training.checkpoints import load_checkpoint
from faceclip.training.muon import MuonAdamW, muon_groups, orthogonalized
from tests.faceclip.training.test_trainer import Line, Numbers, config


def gradients(parameters, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_matrices_step_as_by_pytorchs_muon(shape):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = MuonAdamW([{"params": [ours], "muon": True}], lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        gradients([ours], step)
        gradients([theirs], step)
        one.step()
        other.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_kernel_is_the_matrix_of_its_output_channels():
    start = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    gradients([kernel], 1)
    matrix.grad = kernel.grad.flatten(1).clone()
    for parameter in (kernel, matrix):
        MuonAdamW([{"params": [parameter], "muon": True}], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_directions_of_an_update_have_about_the_same_size():
    matrix = torch.randn(16, 48, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1.5, 0, 16)[:, None]
    before, after = (torch.linalg.svdvals(one.float()) for one in (matrix, orthogonalized(matrix)))
    assert before.max() / before.min() > 20 and after.min() > 0.5 and after.max() < 1.3


def test_other_parameters_step_as_by_adamw():
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5))
    twin = copy.deepcopy(model)
    one = MuonAdamW(muon_groups(model.named_parameters(), 0.1), lr=0.01)
    other = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.0)
    for step in range(3):
        gradients(model.parameters(), step)
        gradients(twin.parameters(), step)
        one.step()
        other.step()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs) == (name != "0.weight")


def test_first_and_last_layers_and_embeddings_stay_with_adamw():
    names = ("conv_in.weight", "mid.conv1.weight", "mid.attn.to_q.weight", "pos_embed", "conv_out.weight", "norm.bias")
    shapes = ((4, 3, 3, 3), (4, 4, 3, 3), (4, 4), (7, 4), (3, 4, 3, 3), (4,))
    named = {name: nn.Parameter(torch.zeros(shape)) for name, shape in zip(names, shapes, strict=True)}
    groups = muon_groups(named.items(), 0.1)
    found = [sorted(n for n, p in named.items() if any(p is q for q in group["params"])) for group in groups]
    assert found == [
        ["mid.attn.to_q.weight", "mid.conv1.weight"],
        ["conv_in.weight", "conv_out.weight", "pos_embed"],
        ["norm.bias"],
    ]
    assert [(group["muon"], group["weight_decay"]) for group in groups] == [(True, 0.1), (False, 0.1), (False, 0.0)]


def test_a_saved_state_resumes_to_the_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    whole = MuonAdamW(muon_groups(model.named_parameters(), 0.01), lr=0.01)
    for step in range(2):
        gradients(model.parameters(), step)
        whole.step()
    resumed = copy.deepcopy(model)
    other = MuonAdamW(muon_groups(resumed.named_parameters(), 0.01), lr=0.01)
    other.load_state_dict(copy.deepcopy(whole.state_dict()))
    for one, optimizer in ((model, whole), (resumed, other)):
        for step in range(2, 4):
            gradients(one.parameters(), step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_a_run_by_muon_resumes_to_the_bit(tmp_path: Path) -> None:
    settings = {"optimizer": "muon", "learning_rate": 1e-2, "schedule": "constant"}
    Trainer(config(steps=8, **settings), Line(), Numbers(), tmp_path / "whole").fit()
    for steps in (4, 8):
        Trainer(config(steps=steps, **settings), Line(), Numbers(), tmp_path / "parts").fit()
    weights = [load_checkpoint(tmp_path / run / "checkpoints" / "step-00000008")[0] for run in ("whole", "parts")]
    assert any(name.endswith(".momentum") for name in weights[0])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_muon_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    class Grouped(Line):
        def parameter_groups(self):
            return [{"params": list(self.modules.parameters())}]

    with pytest.raises(ConfigError, match=r"^trainer\.optimizer: "):
        Trainer(config(steps=1, optimizer="muon"), Grouped(), Numbers(), tmp_path)
    with pytest.raises(ConfigError, match=r"^trainer\.optimizer: .*'adamw', 'muon', got 'sgd'"):
        config(steps=1, optimizer="sgd")
