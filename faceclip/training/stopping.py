"""SIGTERM and Ctrl-C as wishes to stop after the current step; `faceclip.training.watch` lets all processes agree."""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

SAME = 1.0  # seconds within which a launcher passes on the Ctrl-C that the terminal sent to its processes, too


class StopRequest:
    """Whether, and by which signal, this process was asked to stop."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._interrupted = math.inf  # when

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Context in which SIGTERM and the first Ctrl-C (SIGINT) are such requests; a second one, later than `SAME`,
        raises KeyboardInterrupt.

        Outside the main thread signals are left alone, and so are those that are ignored, as by nohup.
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
                # Not print: the signal may have come while something was printed.
                os.write(2, b"stopping after this step; Ctrl-C again stops at once, without saving\n")

    @property
    def status(self) -> int:
        """128 and the number of the signal by which this process was asked, as a shell counts them; 0 without one.

        Of the statuses of several processes the highest counts: SIGTERM before SIGINT.
        """
        return 128 + self.asked if self.asked else 0
