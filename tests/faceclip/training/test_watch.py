"""Steps whose flags are read one step late, as on GPUs: here on the CPU, where everything else of them is the same."""

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from faceclip.errors import NonFiniteLossError
from faceclip.training import Trainer, trainer, watch
from faceclip.training.logging import Window
from faceclip.training.muon import MuonAdamW
from faceclip.training.watch import Watch
from tests.faceclip.training.test_trainer import Line, Numbers, config, weights


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "reads_late", lambda device: True)


READS = ("item", "tolist", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")


class Asked(TorchFunctionMode):
    """Counts how often a number is read out of a tensor, which on an accelerator waits for it.

    Reads of `faceclip.training.watch` do not count: they are of flags in the host's own memory, one step late.
    """

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in READS:
            callers = [sys._getframe(depth).f_code.co_filename for depth in (1, 2, 3)]
            self.count += watch.__file__ not in callers
        return function(*args, **(kwargs or {}))


def test_a_late_run_gives_the_weights_of_one_that_reads_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(config(steps=8), Line(), Numbers(), tmp_path / "at-once").fit()
    monkeypatch.setattr(trainer, "reads_late", lambda device: True)
    Trainer(config(steps=8), Line(), Numbers(), tmp_path / "late").fit()
    ours, theirs = weights(tmp_path / "late"), weights(tmp_path / "at-once")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_is_not_finite_changes_no_weight_before_it_is_noticed(
    tmp_path: Path, late: None, optimizer
) -> None:
    options = {"save_every": 0, "log_every": 0, "ema_decay": None, "optimizer": optimizer}
    seen: list[torch.Tensor] = []
    task = Line(poison_at=5)
    inner = task.loss

    def loss(batch, context):
        if context.micro_step == 0:
            seen.append(torch.cat([p.detach().flatten().clone() for p in task.modules["net"].parameters()]))
        return inner(batch, context)

    task.loss = loss
    with pytest.raises(NonFiniteLossError, match="step 5"):
        Trainer(config(**options), task, Numbers(), tmp_path).fit()
    assert len(seen) == 7  # noticed while the next step is under way, which starts with the weights before the bad one
    assert torch.equal(seen[6], seen[5]) and not torch.equal(seen[5], seen[4])
    last = torch.cat([p.detach().flatten() for p in task.modules["net"].parameters()])
    assert torch.equal(last, seen[5])


def test_nothing_is_saved_after_a_step_that_is_not_finite(tmp_path: Path, late: None) -> None:
    with pytest.raises(NonFiniteLossError, match="step 7"):  # the eighth, after which a checkpoint is due
        Trainer(config(save_every=4, log_every=0), Line(poison_at=7), Numbers(), tmp_path).fit()
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("asking", [False, True])
def test_a_step_reads_nothing_from_the_device(tmp_path: Path, late: None, asking: bool) -> None:
    """Between two losses, but for the log line after the fourth; a loss that asks is noticed."""
    asked, task = Asked(), Line()
    counts: list[int] = []
    inner = task.loss

    def loss(batch, context):
        counts.append(asked.count)
        total, parts = inner(batch, context)
        if asking:
            total.item()
        return total, parts

    task.loss = loss
    run = Trainer(config(steps=6, log_every=4, save_every=0, ema_decay=0.9), task, Numbers(), tmp_path)
    with asked:
        run.fit()
    reads = [after - before for before, after in itertools.pairwise(counts)]
    assert len(reads) >= 5
    assert reads[:3] == [int(asking)] * 3, counts


def test_the_flag_stays_up_and_the_optimizer_passes_over_all_later_steps() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    for optimizer in (torch.optim.AdamW([parameter], fused=True), MuonAdamW([{"params": [parameter], "muon": True}])):
        watch, window = Watch(torch.device("cpu"), late=True), Window()
        before = None
        for step, value in enumerate((1.0, float("inf"))):
            parameter.grad = torch.full((4, 4), value)
            optimizer.found_inf = watch.judge(step, torch.tensor(1.0), parameter.grad.norm(), 0, window)
            before = parameter.detach().clone()
            optimizer.step()
        assert torch.equal(parameter, before)
        with pytest.raises(NonFiniteLossError, match="step 1"):
            watch.judge(2, torch.tensor(1.0), None, 0, window)


def test_a_late_run_is_stopped_by_a_signal(tmp_path: Path, late: None) -> None:
    task = Line()
    inner = task.loss

    def loss(batch, context):
        if context.step == 6 and context.micro_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(batch, context)

    task.loss = loss
    with pytest.raises(SystemExit) as raised:
        Trainer(config(save_every=0), task, Numbers(), tmp_path).fit()
    assert raised.value.code == 143
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000007"]
