"""The shared tower command with what the towers of this folder have in common."""

from dataclasses import dataclass
from typing import Any

from faceclip.settings import setting
from faceclip.training.towers import command

PACKAGE = "train_generator.towers"
FOLDERS = ("vae", "recognizer", "text_l", "text_g")  # arguments that name folders


@dataclass(kw_only=True)
class TowerConfig(command.TowerConfig):
    """The fields of every tower command, and `size`: side of the portraits in pixels."""

    size: int = setting(64, "side of the portraits in pixels")


def run_tower(config_class: type[TowerConfig], argv: list[str] | None, **options: Any) -> int:
    """`faceclip.training.towers.command.run_tower` for a tower of this package; `options`: fields of its `Tower`."""
    return command.run_tower(config_class, argv, package=PACKAGE, folders=FOLDERS, **options)
