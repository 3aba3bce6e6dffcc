"""Experiment trackers of accelerate beside the log that every run writes: Weights & Biases, and TensorBoard elsewhere.

`log.jsonl` and `tensorboard/` in a run's folder need none of this.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker, get_available_trackers

from faceclip.errors import ConfigError
from faceclip.storage.hashes import bytes_hash

FOLDER = "trackers"  # below a run's folder: what trackers keep on this disk


def check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker whose package is not installed."""
    available = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in available:
            raise ConfigError(f"trainer.trackers: {name} is not installed here; pip install {name}, or leave it out")


def open_trackers(
    names: Sequence[str], project: str, directory: Path, settings: Mapping[str, Any]
) -> list[GeneralTracker]:
    """Trackers of a run in `directory`, which receive its settings; a resumed run continues under the same name.

    Raises ConfigError as `check_trackers` does.
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
