"""Trackers of accelerate beside the run's own log: TensorBoard's is there, that of Weights & Biases where it is
installed."""

import importlib.util
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from faceclip.errors import ConfigError
from faceclip.training import Trainer
from tests.faceclip.training.test_trainer import Line, Numbers, config


def test_a_tracker_gets_the_lines_of_the_log_and_the_settings(tmp_path: Path) -> None:
    settings = config(steps=4, log_every=2, trackers=("tensorboard",), tracker_project="faces")
    Trainer(settings, Line(), Numbers(), tmp_path).fit()
    folder = tmp_path / "trackers" / "faces"
    board = EventAccumulator(str(folder)).Reload()
    ours = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("train/loss", "validation/weight"):
        points = [(event.step, event.value) for event in board.Scalars(name)]
        assert points == [(event.step, event.value) for event in ours.Scalars(name)] and points
    assert "trainer.learning_rate" in next(folder.rglob("hparams.yml")).read_text()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_named_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.trackers: wandb"):
        Trainer(config(trackers=("wandb",)), Line(), Numbers(), tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_gets_the_same_lines_and_a_resumed_run_keeps_its_id(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for steps in (4, 8):
        Trainer(config(steps=steps, log_every=2, trackers=("wandb",)), Line(), Numbers(), tmp_path).fit()
        folder = max((tmp_path / "trackers" / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime)
        (file,) = folder.glob("run-*.wandb")
        ids.append(file.stem.removeprefix("run-"))
        deadline = time.monotonic() + 30  # its own process writes the file, a moment after the run
        while (b"train/loss" not in file.read_bytes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        content = file.read_bytes()
        assert b"train/loss" in content and b"trainer.learning_rate" in content
    assert ids[0] == ids[1]
