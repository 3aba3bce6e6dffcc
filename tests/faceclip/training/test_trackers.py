"""Trackers of accelerate beside the run's own log: TensorBoard's is there, that of Weights & Biases is not."""

import importlib.util
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
