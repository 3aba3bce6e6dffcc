"""What a run shows on a terminal and elsewhere, and what it settles before the first step."""

import io
import json
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from faceclip.errors import CheckpointError, NonFiniteLossError
from faceclip.storage.locks import locked
from faceclip.training import Trainer
from faceclip.training.checkpoints import load_checkpoint, save_checkpoint
from tests.faceclip.training.test_trainer import Line, Numbers
from tests.faceclip.training.test_trainer import config as config_of_line
from tests.faceclip.training.test_trainer_step import Plane, Rows, config


class Terminal(io.StringIO):
    """A terminal that keeps what it is shown."""

    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, folder: Path, task: Plane, **changes) -> str:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    Trainer(config(**changes), task, Rows(), folder).fit()
    return terminal.getvalue()


def test_a_terminal_shows_a_bar_that_begins_where_the_run_does(tmp_path: Path, monkeypatch) -> None:
    first = shown(monkeypatch, tmp_path / "faces", Plane(), steps=2, log_every=0)
    assert "faces" in first and "2/2" in first and "step 2" in first and "loss" not in first
    assert first.endswith("\x1b[?25h")  # the cursor is back
    silent = Plane()
    silent.validate = lambda step: {}  # so that the figures of the last step stay
    second = shown(monkeypatch, tmp_path / "faces", silent, steps=4)
    assert "4/4" in second and "loss" in second and "doubled" in second


def test_elsewhere_lines_tell_the_figures_and_the_time_left(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    Trainer(config(steps=4, log_every=2), Plane(), Rows(), tmp_path / "faces").fit()
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert [line.split(" left ")[0] for line in lines] == ["faces 2/4", "faces 4/4", "faces 4/4"]
    assert all(f" {name} " in lines[1] for name in ("loss", "doubled", "learning_rate")) and "step 4" in lines[2]
    assert [line.split()[3] for line in lines[1:]] == ["0:00", "0:00"] and captured.out == ""
    Trainer(config(steps=4), Plane(), Rows(), tmp_path / "faces").fit()
    assert f"{tmp_path / 'faces'}: already at step 4" in capfd.readouterr().out


def test_a_run_that_only_has_to_validate_does_not_say_that_nothing_is_left(tmp_path: Path, capfd) -> None:
    task = Plane()
    validate, task.validate = task.validate, lambda step: 1 / 0
    with pytest.raises(ZeroDivisionError):
        Trainer(config(), task, Rows(), tmp_path).fit()
    task.validate = validate
    assert Trainer(config(), task, Rows(), tmp_path).fit().metrics == {"step": 4.0}
    assert "already" not in capfd.readouterr().out


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path) -> None:
    with ExitStack() as held:
        held.enter_context(locked(tmp_path / "run.lock"))
        release = threading.Timer(20, held.close)  # a run that waited would train then
        release.start()
        with pytest.raises(CheckpointError, match="another process"):
            Trainer(config(), Plane(), Rows(), tmp_path).fit()
        release.cancel()
    assert Trainer(config(), Plane(), Rows(), tmp_path).fit().step == 4


def test_threads_and_the_facts_of_task_and_caller_belong_to_the_run(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        task = Plane()
        task.facts = lambda: {"base": "a", "data": "b"}
        Trainer(config(num_threads=before + 1), task, Rows(), tmp_path, facts={"data": "c"}).fit()
        assert torch.get_num_threads() == before + 1
        Trainer(config(), task, Rows(), tmp_path / "other")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    noted = json.loads(next(tmp_path.glob("checkpoints/*/state.json")).read_text())["run"]
    assert {"base": "a", "data": "c", "seed": 0, "batch_size": 3, "samples": 7}.items() <= noted.items()


def test_figures_of_speed_lie_within_what_was_spent(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Two steps of two chunks that take a tenth of a second each; of 100 steps 98 are left."""
    task = Plane()
    inner = task.loss

    def loss(batch: dict, context) -> tuple:
        if context.step == 2:
            raise KeyboardInterrupt
        time.sleep(0.1)
        return inner(batch, context)

    task.loss = loss
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        Trainer(config(steps=100, accumulate=2, log_every=2), task, Rows(), tmp_path).fit()
    spent = time.perf_counter() - began
    (line,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert 12 / spent < line["samples_per_second"] < 12 / 0.4 and 0 <= line["data_percent"] < 100
    assert line["memory_gib"] > 0.01
    minutes, seconds = capfd.readouterr().err.split(" left ")[1].split()[0].split(":")
    assert 98 * 0.2 - 1 < 60 * int(minutes) + int(seconds) < 98 * spent / 2


def test_a_checkpoint_that_says_nothing_of_validation_was_validated(tmp_path: Path) -> None:
    checkpoint = Trainer(config(), Plane(), Rows(), tmp_path).fit().checkpoint
    tensors, facts = load_checkpoint(checkpoint)
    assert facts.pop("validated") is True
    save_checkpoint(checkpoint.parent, 4, tensors, facts)
    task = Plane()
    assert Trainer(config(), task, Rows(), tmp_path).fit().metrics == {} and not task.validated


def test_a_loss_that_is_no_number_stops_its_own_step_on_a_cpu(tmp_path: Path) -> None:
    task, steps = Line(poison_at=3), []
    inner = task.loss
    task.loss = lambda batch, context: (steps.append(context.step), inner(batch, context))[1]
    with pytest.raises(NonFiniteLossError, match="step 3"):
        Trainer(config_of_line(accumulate=1), task, Numbers(), tmp_path).fit()
    assert steps == [0, 1, 2, 3]
