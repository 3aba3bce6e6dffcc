"""A stage's command as a child that ends with the demo, however the demo is stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faceclip.storage.files import disk_errors

PATIENCE = 120.0  # seconds that a stopped command has for saving


class Stopped(BaseException):
    """A signal asks the demo to stop; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise Stopped on Ctrl-C, SIGTERM, or a terminal that goes away; only in the main thread.

    Later signals are ignored, so that a second Ctrl-C does not cut short what the first one lets the child save.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    for number, handler in previous.items():
        if handler is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_command(command: list[str], log: Path, on_tick: Callable[[float], None]) -> int:
    """Runs a command with its output appended to `log`; returns its exit status.

    `on_tick` is called twice a second with the seconds since the start. Whatever interrupts the waiting ends the
    command by SIGTERM, on which trainers save, and waits for it. Raises DataError when the log cannot be made.
    """
    with disk_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    began = time.monotonic()
    with output:
        # In a session of its own: a terminal sends Ctrl-C to all of its foreground processes, and a second one would
        # cut short what a trainer saves.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            while process.poll() is None:
                on_tick(time.monotonic() - began)
                time.sleep(0.5)
        finally:
            process.terminate()  # does nothing to one that has ended
            last = signal.SIGTERM  # for workers that outlived the command
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                last = signal.SIGKILL
            if process.returncode != 0:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, last)
                process.wait()
    return process.returncode
