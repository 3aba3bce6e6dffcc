"""Several ControlNets of a saved pipeline lie as in diffusers: folders controlnet, controlnet_1, controlnet_2, …"""

from __future__ import annotations

import shutil
from pathlib import Path

from diffusers import ControlNetModel, MultiControlNetModel

from faceclip.storage.loading import check_folder

NAME = "controlnet"


def check_several(directory: Path, *, variant: str | None = None) -> None:
    """Checks each of the folders by its headers. Raises CheckpointError, which names file and tensor."""
    check_folder(directory / NAME, ControlNetModel, variant=variant)
    for folder in _further(directory):
        check_folder(folder, ControlNetModel, variant=variant)


def remove_further(directory: Path, controlnet: MultiControlNetModel) -> None:
    """Removes folders of an earlier save with more ControlNets, which diffusers would load too."""
    for folder in _further(directory)[len(controlnet.nets) - 1 :]:
        shutil.rmtree(folder)


def _further(directory: Path) -> list[Path]:
    """The folders after the first, in order, up to the first gap."""
    found: list[Path] = []
    while (folder := directory / f"{NAME}_{len(found) + 1}").is_dir():
        found.append(folder)
    return found
