"""Runs the command of a stage: trains by its configuration, then prints the last figures and the export's folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from faceclip.settings import run
from faceclip.training.collectives import is_main_process
from faceclip.training.interfaces import Result

T = TypeVar("T")
INTERRUPTED = "interrupted; the same command resumes from the last checkpoint"


def run_training(
    train: Callable[[T], Result], config_class: type[T], argv: Sequence[str] | None = None, *, presets: Path
) -> int:
    """Runs a training function like `faceclip.settings.run`; only the main process prints. Returns the exit status."""

    def work(config: T) -> None:
        result = train(config)
        if is_main_process():
            for name, value in result.metrics.items():
                print(f"{name}: {value:.4f}")
            print(f"exported to {result.export}")

    return run(work, config_class, argv, presets=presets, interrupted=INTERRUPTED)
