"""The shared tower command, adapted to the towers of this folder."""

from dataclasses import dataclass
from typing import Any

from faceclip.settings import setting
from faceclip.training.towers import command

PACKAGE = "train_generator.towers"
FOLDERS = ("vae", "recognizer", "text_l", "text_g")  # arguments that name folders


@dataclass(kw_only=True)
class TowerConfig(command.TowerConfig):
    """Settings of every tower command of this folder."""

    size: int = setting(64, "side of the portraits in pixels")


def run_tower(config_class: type[TowerConfig], argv: list[str] | None = None, **options: Any) -> int:
    """Runs `faceclip.training.towers.command.run_tower` for a tower of this folder. options: fields of its `Tower`."""
    return command.run_tower(config_class, argv, package=PACKAGE, folders=FOLDERS, **options)
