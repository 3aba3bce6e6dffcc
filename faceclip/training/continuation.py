"""Whether a run may resume: its settings, facts and steps against those of the checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faceclip.errors import CheckpointError
from faceclip.settings.fields import compared_on_resume
from faceclip.training.interfaces import TrainerConfig


def settings_of(trainer: TrainerConfig, config: Any | None) -> dict[str, Any]:
    """What a resumed run must not change, by dotted key, of a command's configuration (a dataclass, or None where there
    is only `trainer`). The policy stands on each field (`faceclip.settings.setting`).

    Free are places (what lies there is compared by its hash), figures, logs, and how the work is done. Seed and batch
    size are compared by the trainer itself.
    """
    found = {} if config is None else compared_on_resume(config)
    found |= compared_on_resume(trainer, "trainer.")
    return json.loads(json.dumps(found, default=str))  # as a checkpoint gives it back


def check_same_run(folder: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises CheckpointError, which names the settings that differ from the checkpoint in `folder`.

    What only one side tells is unknown, not different: older checkpoints hold fewer facts and settings. The number of
    processes may change where trainer.accumulate changes with it, so that every step takes the same samples.
    """
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
    """Batches of a step on all processes together."""
    return run["processes"] * run["accumulate"]


def noted_run(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a checkpoint's run, with those that older checkpoints did not write because they had one value."""
    unsaid = {"layout": "replicated"}
    if not facts.get("settings", {}).get("init"):
        unsaid["init"] = "none"
    return unsaid | facts["run"]


def noted_settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint's run, with those that had one value when older checkpoints were written."""
    unsaid = {"trainer.moments": "fp32", "frozen": "fp32", "adapter.shading_layers": "all"}
    return unsaid | facts.get("settings", {})


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
