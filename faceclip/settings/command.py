"""Runs a command: parses its settings, does the work, and reports a user's error in one line.

Exit status: 0, what the work returns, 2 for a user's error, 130 for Ctrl-C.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from faceclip.errors import FaceClipError
from faceclip.settings.config import parse_config
from faceclip.storage.locks import folders_released

T = TypeVar("T")


def run(
    work: Callable[[T], int | None],
    config_class: type[T],
    argv: Sequence[str] | None = None,
    *,
    presets: Path | None = None,
    flags: bool = False,
    interrupted: str = "interrupted",
) -> int:
    """Parses the command line (`argv`, or that of the process), does the work, and returns the exit status.

    presets, flags: see `parse_config`. interrupted: the sentence after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    return guarded(
        lambda: work(parse_config(config_class, words, presets=presets, flags=flags)), interrupted=interrupted
    )


def guarded(work: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """Runs `work` and returns its exit status (None is 0), or that of its error, which is printed in one line."""
    try:
        with folders_released():
            status = work()
    except FaceClipError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 128 + signal.SIGINT
    leave_process_group()
    return status or 0


def leave_process_group() -> None:
    """Ends torch's process group, if there is one, which would otherwise warn of leaks. Never imports torch."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
