"""The shared tower command with what the towers of this folder have in common."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_encoder.towers import command

PRESETS = Path(__file__).parent / "presets"
FOLDERS = ("vae", "judge", "recognizer", "text_l", "text_g")  # arguments that name folders


@dataclass(kw_only=True)
class TowerConfig(command.TowerConfig):
    """The fields of every tower command, and `size`: side of the portraits in pixels."""

    size: int = 64


def run_tower(config_class: type[TowerConfig], argv: list[str] | None, **options: Any) -> int:
    """`train_encoder.towers.command.run_tower` for a tower of this package; `options`: fields of its `Tower`."""
    return command.run_tower(config_class, argv, package="train_generator", presets=PRESETS, folders=FOLDERS, **options)
