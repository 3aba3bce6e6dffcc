"""Names of the files in the folder of a training run."""

from pathlib import Path

from faceclip.storage.places import check_place

CHECKPOINTS = "checkpoints"
EXPORT = "export"
BEST = "best"
LOCK = "run.lock"
# Every run's folder has at least one of these, even if the run was killed early.
MARKS = (LOCK, "log.jsonl", f"{CHECKPOINTS}/step-*", f"{CHECKPOINTS}/.step-*.tmp", f".{EXPORT}.*.tmp")


def check_output(directory: Path) -> None:
    """Raises ConfigError if a run's folder would be `/` or holds files of another program, before any work is done."""
    check_place(Path(directory), "out=", MARKS)
