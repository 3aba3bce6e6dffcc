"""What log lines say of the machine, on the CPU: share of a named peak, memory; the policy for float32 products."""

import json
from pathlib import Path

import pytest
import torch

from faceclip.errors import ConfigError
from faceclip.training import Trainer
from faceclip.training.accelerators import FlopMeter, float32_products, memory_gib, moved, pinned
from tests.faceclip.training.test_trainer import Line, Numbers, config, weights


def test_the_first_step_is_counted_by_its_products() -> None:
    meter, layer = FlopMeter(1e-6), torch.nn.Linear(8, 16, bias=False)
    for rows in (4, 40):
        with meter.step():
            layer(torch.ones(rows, 8)).sum().backward()
    assert meter.flops == 2 * (2 * 4 * 8 * 16)  # forward, and the gradient of the weight
    assert meter.percent(2.0) == {"flops_percent": pytest.approx(100 * meter.flops / 2e6)}


def test_a_log_line_tells_memory_and_the_share_of_a_named_peak_and_counting_changes_nothing(tmp_path: Path) -> None:
    for name, peak in (("plain", None), ("counted", 1e-3)):
        Trainer(config(steps=4, log_every=2, peak_tflops=peak), Line(), Numbers(), tmp_path / name).fit()
    plain, counted = (
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0]) for name in ("plain", "counted")
    )
    assert "flops_percent" not in plain and counted["flops_percent"] > 0
    assert 0.05 < plain["memory_gib"] <= memory_gib(torch.device("cpu")) < 1000
    ours, theirs = weights(tmp_path / "counted"), weights(tmp_path / "plain")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_policy_for_float32_ends_with_its_context() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with float32_products(tf32=not before[0]):
        assert torch.backends.cuda.matmul.allow_tf32 is not before[0]
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_batches_move_without_their_other_values() -> None:
    batch = {"x": torch.ones(2), "name": "a"}
    assert pinned(batch, torch.device("cpu")) is batch
    there = moved(batch, torch.device("meta"))
    assert there["x"].is_meta and there["name"] == "a"


@pytest.mark.parametrize("name", ["timeout_minutes", "peak_tflops"])
def test_impossible_limits_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.{name}: .*\b0\b"):
        config(**{name: 0})
