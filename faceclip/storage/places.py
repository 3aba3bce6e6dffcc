"""Checks that a command writes into its own folder, and not to the root of the file system or among other files."""

from collections.abc import Sequence
from pathlib import Path

from faceclip.errors import ConfigError, listed

# What users and systems put beside a run: it makes a folder nobody else's.
_NOTES = (".log", ".out", ".err")
_LITTER = (".DS_Store", ".gitkeep", ".gitignore", "lost+found")


def check_place(folder: Path, option: str, marks: Sequence[str] = ()) -> None:
    """Rejects a folder that must not be written to.

    Args:
        folder: what the `option` ("out=") names; it need not exist. marks: patterns of `Path.glob`, of which one finds
            something in every folder that this kind of command wrote; without any, what lies there does not matter.

    Raises:
        ConfigError: the root of the file system, or a folder that holds files and none of the marks.
    """
    whole = folder.resolve()
    if whole == Path(whole.anchor):
        raise ConfigError(f"{option}{folder}: this is the root of the file system; name a folder of its own")
    try:
        if not marks or not folder.is_dir() or any(next(folder.glob(mark), None) is not None for mark in marks):
            return
        others = sorted(path.name for path in folder.iterdir() if not _is_note(path))
    except OSError as error:
        raise ConfigError(f"{option}{folder}: cannot be read ({error.strerror}); name another folder") from error
    if others:
        raise ConfigError(
            f"{option}{folder}: holds {listed(others)}, which this command did not write; name a new or an empty folder"
        )


def _is_note(path: Path) -> bool:
    return path.name in _LITTER or (path.suffix in _NOTES and path.is_file())
