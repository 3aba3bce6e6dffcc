"""Decides whether a run may resume, by comparing its settings, facts and steps with those of the checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faceclip.errors import CheckpointError
from faceclip.settings.fields import compared_on_resume
from faceclip.training.interfaces import TrainerConfig

# Settings of older runs that no longer exist, with the value by which they had no effect.
REMOVED = {"loss.latent_identity": 0.0, "loss.latent_attributes": 0.0, "loss.latent_features": 0.0}


def settings_of(trainer: TrainerConfig, config: Any | None) -> dict[str, Any]:
    """Returns, by dotted key, the settings that a resumed run must not change.

    config: a command's configuration (a dataclass), or None if there is only `trainer`. Each field declares its own
    policy (`faceclip.settings.setting`). Paths may change (their content is compared by hash), and so may figures, logs
    and the way the work is done. The trainer itself compares seed and batch size.
    """
    found = {} if config is None else compared_on_resume(config)
    found |= compared_on_resume(trainer, "trainer.")
    return json.loads(json.dumps(found, default=str))  # as a checkpoint gives it back


def check_same_run(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises CheckpointError, which names the settings that differ, if the checkpoint in `folder` is of another run.

    Settings that only one side has are not compared, because older checkpoints hold fewer of them; those of older
    checkpoints that no longer exist must have been off. The number of
    processes may change if trainer.accumulate changes with it, so that every step takes the same samples.
    """
    ours = {**REMOVED, **ours}
    changed = [key for key, value in ours.items() if key in theirs and theirs[key] != value]
    if {"processes", "accumulate"} <= set(changed) and _chunks(ours) == _chunks(theirs):
        changed = [key for key in changed if key not in ("processes", "accumulate")]
    if changed:
        pairs = ", ".join(f"{key} was {_text(theirs[key])}, now {_text(ours[key])}" for key in changed)
        elastic = ""
        if "processes" in changed:
            elastic = f"; with other processes set trainer.accumulate so that their product is {_chunks(theirs)}"
        raise CheckpointError(
            f"{folder}: cannot resume exactly ({pairs}); use another output directory (out=DIR), or set it as it was"
            f"{elastic}"
        )


def _chunks(run: Mapping[str, Any]) -> int:
    """Returns the number of batches of a step over all processes."""
    return run["processes"] * run["accumulate"]


def noted_run(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts of a checkpoint's run, completed by the only value of those that older checkpoints lack."""
    unsaid = {"layout": "replicated"}
    if not facts.get("settings", {}).get("init"):
        unsaid["init"] = "none"
    return unsaid | facts["run"]


def noted_settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a checkpoint's run, completed by the only value of those that older checkpoints lack."""
    unsaid = {"trainer.moments": "fp32", "frozen": "fp32", "adapter.shading_layers": "all"}
    return unsaid | facts.get("settings", {})


def check_steps(folder: Path, done: int, wanted: int) -> None:
    """Raises CheckpointError if the run would end (`wanted` steps) before the step of its checkpoint (`done`)."""
    if wanted < done:
        raise CheckpointError(
            f"{folder}: already at step {done}, beyond trainer.steps={wanted}: set trainer.steps="
            f"{done} or more, or use another output directory (out=DIR)"
        )


def _text(value: Any) -> str:
    """Formats a value as on a command line."""
    return value if isinstance(value, str) else json.dumps(value)
