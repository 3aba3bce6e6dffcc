"""The export of the best validated weights, by one figure."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faceclip.errors import ConfigError
from faceclip.storage.folders import write_atomically
from faceclip.training.interfaces import Task, TrainerConfig


class BestExport:
    """Keeps `folder` at the export of the best `trainer.best_metric` so far; does nothing when there is none.

    Raises ConfigError for a figure that the task, where it tells its figures, does not give.
    """

    def __init__(self, config: TrainerConfig, task: Task, folder: Path) -> None:
        self.name, self.larger = config.best_metric, config.best_mode == "max"
        self.task, self.folder = task, folder
        self.value: float | None = None
        figures = task.figures()
        if figures is not None:
            self._check(figures)

    def offer(self, metrics: Mapping[str, float]) -> None:
        """Export the task if these figures are better than all before. Raises ConfigError, CheckpointError."""
        if self.name is None:
            return
        self._check(metrics)
        new = metrics[self.name]
        if math.isnan(new):
            return  # nothing would be better than that
        if self.value is None or (new > self.value if self.larger else new < self.value):
            self.value = new
            write_atomically(self.folder, self.task.export)

    def facts(self) -> dict[str, Any]:
        """For a checkpoint: the figure so far and what it is of."""
        return {"best": self.value, "best_of": [self.name, self.larger]}

    def take_over(self, facts: Mapping[str, Any]) -> None:
        """Go on from the facts of a checkpoint; a figure of another name is not compared."""
        ours = [self.name, self.larger]
        self.value = facts["best"] if facts.get("best_of", ours) == ours else None

    def _check(self, names: Any) -> None:
        if self.name is not None and self.name not in names:
            raise ConfigError(f"trainer.best_metric: {self.name} is not among {', '.join(names)}")
