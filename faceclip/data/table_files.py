"""Which files are tables, by their endings, and which paths may be named as data at all."""

from pathlib import Path

from faceclip.errors import ConfigError

KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".tar": "webdataset",
    ".jsonl": "json",
    ".csv": "csv",
    ".json": "json",
    ".ndjson": "json",
}
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_SYSTEM = ("/proc", "/sys", "/dev")  # their files are made when they are read, and some of them have no end
_MEMORY = "/dev/shm"


def table_kind(path: Path) -> str | None:
    """The module of `datasets` that reads a table of this ending, in small or capital letters; None for other files."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in _PACKED:
        endings.pop()
    return KINDS.get(endings[-1]) if endings else None


def check_data_path(path: str, key: str) -> None:
    """Raises ConfigError, which names `key`, for a path that no system can have and for the system's own folders."""
    shown = path if len(path) <= 200 else f"{path[:200]}…"
    try:
        Path(path).exists()
        real = Path(path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, or links in a circle
        why = str(getattr(error, "strerror", None) or error)[:200]
        raise ConfigError(f"{key}={shown!r}: no path of this system ({why}); name a folder or a table") from error
    if any(real.is_relative_to(place) for place in _SYSTEM) and not real.is_relative_to(_MEMORY):
        raise ConfigError(f"{key}={shown}: belongs to the system and holds no data; name a folder or a table")
