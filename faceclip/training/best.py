"""Exports the best weights so far, judged by one validation figure."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faceclip.errors import ConfigError
from faceclip.storage.folders import write_atomically
from faceclip.training.interfaces import Task, TrainerConfig


class BestExport:
    """Keeps in `folder` the export with the best `trainer.best_metric` so far; does nothing if that is null.

    Raises ConfigError if the task names its figures and `trainer.best_metric` is not among them.
    """

    def __init__(self, config: TrainerConfig, task: Task, folder: Path) -> None:
        self.name, self.larger = config.best_metric, config.best_mode == "max"
        self.task, self.folder = task, folder
        self.value: float | None = None
        figures = task.figures()
        if figures is not None:
            self._check(figures)

    def offer(self, metrics: Mapping[str, float]) -> None:
        """Exports the task if its figure is better than all earlier ones; NaN never is.

        Raises ConfigError if the figure is missing, and CheckpointError if the export cannot be written.
        """
        if self.name is None:
            return
        self._check(metrics)
        new = metrics[self.name]
        if math.isnan(new):
            return  # no later figure would be better than NaN
        if self.value is None or (new > self.value if self.larger else new < self.value):
            self.value = new
            write_atomically(self.folder, self.task.export)

    def facts(self) -> dict[str, Any]:
        """Returns the best figure so far and its name and direction, for a checkpoint."""
        return {"best": self.value, "best_of": [self.name, self.larger]}

    def take_over(self, facts: Mapping[str, Any]) -> None:
        """Restores the best figure from the facts of a checkpoint, unless that is a figure of another name."""
        ours = [self.name, self.larger]
        self.value = facts["best"] if facts.get("best_of", ours) == ours else None

    def _check(self, names: Any) -> None:
        if self.name is not None and self.name not in names:
            raise ConfigError(f"trainer.best_metric: {self.name} is not among {', '.join(names)}")
