"""What every command does around its work: parse, run, and say in one line what a user can mend.

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
    usage: str = "",
    interrupted: str = "interrupted",
) -> int:
    """Parse the words of the command line (`argv`, or those of the process) and do the work; returns the exit status.

    presets, flags, usage: see `parse_config`. interrupted: the sentence after Ctrl-C.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    return guarded(
        lambda: work(parse_config(config_class, words, presets=presets, flags=flags, usage=usage)),
        interrupted=interrupted,
    )


def guarded(work: Callable[[], int | None], *, interrupted: str = "interrupted") -> int:
    """The exit status of `work`: its own (None is 0), or that of its error, which is printed in one line."""
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
    """Ends torch's process group where there is one, which else warns of leaked resources; never imports torch."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
