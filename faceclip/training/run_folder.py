"""What lies in the folder of a training run."""

from pathlib import Path

from faceclip.storage.places import check_place

CHECKPOINTS = "checkpoints"
EXPORT = "export"
BEST = "best"
LOCK = "run.lock"
# Of which every run's folder has one, also where the run was killed early.
MARKS = (LOCK, "log.jsonl", f"{CHECKPOINTS}/step-*", f"{CHECKPOINTS}/.step-*.tmp", f".{EXPORT}.*.tmp")


def check_output(directory: Path) -> None:
    """Raises ConfigError, before a command works, for a run's folder at `/` or among files of something else."""
    check_place(Path(directory), "out=", MARKS)
