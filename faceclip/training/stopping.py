"""Turns SIGTERM and Ctrl-C into requests to stop after the current step. `faceclip.training.watch` makes all processes
agree."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

SAME = 1.0  # seconds in which a launcher repeats the Ctrl-C that the terminal already sent to its processes


class StopRequest:
    """Records whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._interrupted = math.inf  # when

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Context in which SIGTERM and the first Ctrl-C (SIGINT) are recorded as requests.

        A second Ctrl-C, more than `SAME` seconds later, raises KeyboardInterrupt. Outside the main thread no signal is
        handled, and ignored signals (nohup) stay ignored.
        """
        with ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT):
                previous = signal.getsignal(number)
                if previous != signal.SIG_IGN and threading.current_thread() is threading.main_thread():
                    signal.signal(number, self._ask)
                    stack.callback(signal.signal, number, previous)
            yield

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number)
        if number == signal.SIGINT:
            now = time.monotonic()
            if now - self._interrupted > SAME:
                raise KeyboardInterrupt
            if self._interrupted == math.inf:
                self._interrupted = now
                # `print` is not safe here, because the signal may have interrupted another print.
                os.write(2, b"stopping after this step; Ctrl-C again stops at once, without saving\n")

    @property
    def status(self) -> int:
        """128 + the number of the signal that asked this process to stop, as shells count; 0 if there was none.

        Of several processes the highest status counts: SIGTERM before SIGINT.
        """
        return 128 + self.asked if self.asked else 0
