"""Opens experiment trackers of accelerate, Weights & Biases and TensorBoard, in addition to the log of every run.

`log.jsonl` and `tensorboard/` in a run's folder do not need them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker, get_available_trackers

from faceclip.errors import ConfigError
from faceclip.storage.hashes import bytes_hash

FOLDER = "trackers"  # below a run's folder: files of the trackers


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError if the package of a tracker is not installed."""
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in available:
            raise ConfigError(f"trainer.trackers: {name} is not installed here; pip install {name}, or leave it out")


def open_trackers(
    names: Sequence[str], project: str, directory: Path, settings: Mapping[str, Any]
) -> list[GeneralTracker]:
    """Opens the trackers of a run in `directory` and passes its settings to them; a resumed run keeps its name.

    Raises ConfigError if the package of a tracker is not installed.
    """
    check_trackers(names)
    place, trackers = directory / FOLDER, []
    for name in names:
        place.mkdir(parents=True, exist_ok=True)
        tracker: GeneralTracker
        if name == "wandb":
            run = bytes_hash(str(directory.resolve()).encode())[:12]
            tracker = WandBTracker(project, dir=str(place), id=run, name=directory.name, resume="allow")
        else:
            tracker = TensorBoardTracker(project, logging_dir=str(place))
        tracker.start()
        tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
        trackers.append(tracker)
    return trackers


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | str | float | int) else json.dumps(value)
