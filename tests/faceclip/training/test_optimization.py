"""The learning-rate schedule and the parameter groups, by hand."""

import pytest
import torch
from torch import nn

from faceclip.errors import ConfigError
from faceclip.training.int8_moments import Int8AdamW
from faceclip.training.interfaces import TrainerConfig
from faceclip.training.muon import MuonAdamW
from faceclip.training.optimization import decay_groups, make_optimizer, rate_factor


def test_warm_up_then_half_a_cosine() -> None:
    options = {"steps": 11, "warmup": 2, "schedule": "cosine", "min_ratio": 0.1}
    # A quarter of the way down: 0.1 + 0.9 · (1 + cos(π / 4)) / 2.
    expected = {0: 0.5, 1: 1.0, 2: 1.0, 4: 0.868198, 6: 0.55, 8: 0.231802, 10: 0.1, 15: 0.1}
    for step, value in expected.items():
        assert rate_factor(step, **options) == pytest.approx(value, abs=1e-6), step


def test_constant_rate_warms_up_too() -> None:
    options = {"steps": 9, "warmup": 4, "schedule": "constant", "min_ratio": 0.0}
    assert [rate_factor(step, **options) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_runs_too_short_for_a_schedule() -> None:
    assert rate_factor(0, steps=1, warmup=0, schedule="cosine", min_ratio=0.0) == 1.0
    assert rate_factor(2, steps=3, warmup=2, schedule="cosine", min_ratio=0.0) == 1.0
    # Two steps left after warming up: the last one stands at the end of the cosine.
    assert rate_factor(3, steps=4, warmup=2, schedule="cosine", min_ratio=0.25) == pytest.approx(0.25)


def test_biases_gains_and_scalars_do_not_decay() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    scalar = nn.Parameter(torch.tensor(1.0))
    decayed, free = decay_groups([*module.named_parameters(), ("scale", scalar)], 0.3)
    assert decayed["weight_decay"] == 0.3 and free["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(module[0].weight)]
    assert {id(p) for p in free["params"]} == {id(p) for p in (module[0].bias, *module[1].parameters(), scalar)}
    assert len(decay_groups([("w", module[0].weight)], 0.3)) == len(decay_groups([("s", scalar)], 0.3)) == 1


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", "fp32"), ("adamw", "int8"), ("muon", "fp32")])
def test_the_optimizer_of_a_run_decays_matrices_alone_at_the_runs_rates(optimizer: str, moments: str) -> None:
    module = nn.Linear(3, 2)
    config = TrainerConfig(
        optimizer=optimizer, moments=moments, learning_rate=0.01, weight_decay=0.3, betas=(0.8, 0.9), steps=1
    )
    made = make_optimizer(config, dict(module.named_parameters()), None, whole=True)
    decays = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert decays == {id(module.weight): 0.3, id(module.bias): 0.0}
    assert {(group["lr"], tuple(group["betas"])) for group in made.param_groups} == {(0.01, (0.8, 0.9))}
    kind = {"int8": Int8AdamW, "muon": MuonAdamW}.get(moments if moments == "int8" else optimizer, torch.optim.AdamW)
    assert type(made) is kind and all(group["fused"] for group in made.param_groups)


@pytest.mark.parametrize(
    ("changes", "own", "whole", "key"),
    [
        ({"moments": "int8"}, False, False, "moments"),
        ({"moments": "int8", "optimizer": "muon"}, False, True, "moments"),
        ({"moments": "int8"}, True, True, None),
        ({"optimizer": "muon"}, False, False, "optimizer"),
        ({"optimizer": "muon"}, True, True, "optimizer"),
        ({}, True, False, None),
    ],
)
def test_optimizers_that_need_whole_weights_or_no_groups_say_so(changes: dict, own: bool, whole: bool, key) -> None:
    module = nn.Linear(3, 2)
    config, parameters = TrainerConfig(steps=1, weight_decay=0.3, **changes), dict(module.named_parameters())
    groups = [{"params": [module.bias], "weight_decay": 0.7}] if own else None
    if key is None:
        (made,) = make_optimizer(config, parameters, groups, whole=whole).param_groups
        assert made["params"] == [module.bias] and made["weight_decay"] == 0.7
        return
    with pytest.raises(ConfigError, match=rf"^trainer\.{key}: "):
        make_optimizer(config, parameters, groups, whole=whole)
