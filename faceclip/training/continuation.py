"""Which settings a run that goes on may change; all others decide what the weights become."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faceclip.errors import CheckpointError
from faceclip.training.config import to_dict
from faceclip.training.interfaces import TrainerConfig

# Places (what lies there is compared by its hash), figures, logs, and how the work is done. Seed and batch size are
# compared by the trainer itself.
FREE = frozenset(
    {
        "out",
        "cache",
        "export",
        "half",
        "data",
        "init",
        "towers",
        "encoder",
        "base",
        "vae",
        "text_l",
        "text_g",
        "recognizer",
        "latent_recognizer",
        "image_tower",
        "judge",
        "fitter",
        "licence",
        "validation_queries",
        "validation_rows",
        "sample_steps",
        "measured_images",
        "guidance",
        "sampling_steps",
        "data.path",
        "data.images",
        "data.streaming",
        "data.workers",
        "data.worker_kind",
        "data.device",
        "data.batch_size",
        "data.shard_rows",
        "data.max_bad_share",
        "data.accept_non_commercial",
        "data.verify",
        "trainer.steps",
        "trainer.log_every",
        "trainer.validate_every",
        "trainer.save_every",
        "trainer.keep_checkpoints",
        "trainer.best_metric",
        "trainer.best_mode",
        "trainer.resume",
        "trainer.num_threads",
        "trainer.device",
        "trainer.seed",
        "trainer.batch_size",
        "trainer.accumulate",
    }
)


def settings_of(trainer: TrainerConfig, config: Any | None) -> dict[str, Any]:
    """What must stay, by dotted key, of a command's configuration (a dataclass, or None where there is only `trainer`).

    A data set that is given by its path alone has no settings; `towers` and the like are compared by their hashes.
    """
    found: dict[str, Any] = {}

    def collect(values: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if isinstance(value, Mapping) and key != "towers":
                collect(value, f"{key}.")
            elif key not in FREE:
                found[key] = value

    collect(({} if config is None else to_dict(config)) | {"trainer": to_dict(trainer)}, "")
    return json.loads(json.dumps(found))  # as a checkpoint gives it back


def check_same_run(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises CheckpointError that names what differs from the checkpoint in `folder`.

    What only one side tells is unknown, not different: older checkpoints hold fewer facts and settings.
    """
    changed = [key for key, value in ours.items() if key in theirs and theirs[key] != value]
    if changed:
        pairs = ", ".join(f"{key} was {_text(theirs[key])}, now {_text(ours[key])}" for key in changed)
        raise CheckpointError(
            f"{folder}: cannot resume exactly ({pairs}); use another output directory (out=DIR), or set it as it was"
        )


def noted_run(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its run, with what went without saying when older ones were written."""
    unsaid = {"layout": "replicated"}
    if not facts.get("settings", {}).get("init"):
        unsaid["init"] = "none"
    return unsaid | facts["run"]


def check_steps(folder: Path, done: int, wanted: int) -> None:
    """Raises CheckpointError if a run is to end before the step at which its checkpoint stands."""
    if wanted < done:
        raise CheckpointError(
            f"{folder}: already at step {done}, beyond trainer.steps={wanted}: set trainer.steps="
            f"{done} or more, or use another output directory (out=DIR)"
        )


def _text(value: Any) -> str:
    """As a command line would say it."""
    return value if isinstance(value, str) else json.dumps(value)
