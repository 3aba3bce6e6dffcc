"""Training logs: JSON lines, TensorBoard, and a progress display with the estimated time left."""

import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.tracking import GeneralTracker
from rich.console import Console
from rich.progress import Progress, TextColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from faceclip.storage.files import disk_errors, write_text
from faceclip.training.progress import counting_columns


class RunLog:
    """Writes `log.jsonl` and `tensorboard/` below a run directory, and logs to `trackers`.

    On resume, lines after step `start` are dropped from the file; records in trackers stay.

    All methods raise DataError if the disk is full or not writable.
    """

    def __init__(self, directory: Path, *, start: int, trackers: Sequence[GeneralTracker] = ()) -> None:
        self.path, self._trackers = Path(directory) / "log.jsonl", list(trackers)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._forget_after(start)
            self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 (open for the whole run)
        self._board = EventFile(Path(directory) / "tensorboard", start=start)

    def write(self, step: int, values: Mapping[str, float], *, kind: str) -> None:
        """Writes one record; `kind` is "train" or "validation"."""
        with disk_errors(self.path):
            self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        named = {f"{kind}/{name}": value for name, value in values.items()}
        self._board.write(step, named)
        for tracker in self._trackers:
            tracker.log(named, step=step)

    def close(self) -> None:
        """Flushes and closes the log and the trackers."""
        with disk_errors(self.path), closing(self._board), closing(self._file):
            for tracker in self._trackers:
                tracker.finish()

    def _forget_after(self, step: int) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines()
        kept = []
        for line in lines:
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # the last line of a killed run may be half written
        write_text(self.path, "".join(line + "\n" for line in kept))


class EventFile:
    """Writes scalars for TensorBoard to a new file in `directory`; it hides steps after `start` of older files.

    The caller's thread writes at once. PyTorch's `SummaryWriter` uses a thread of its own, which ends with a traceback
    on a full disk; this class raises DataError.
    """

    def __init__(self, directory: Path, *, start: int = 0) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self.path = directory / name
        with disk_errors(self.path):
            directory.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(open(self.path, "wb"))  # noqa: SIM115 (open for the whole run)
            self._add(Event(file_version="brain.Event:2"))
            self._add(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))
            self._records.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one value for each name; TensorBoard shows a curve per name."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        with disk_errors(self.path):
            self._add(Event(step=step, summary=Summary(value=scalars)))
            self._records.flush()

    def close(self) -> None:
        """Closes the file."""
        with disk_errors(self.path):
            self._records.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class Display:
    """Shows a progress bar on a terminal, and plain lines with the time left elsewhere."""

    def __init__(self, total: int, start: int, label: str) -> None:
        self.total, self.label = total, label
        console = Console(file=sys.stderr)
        self.progress = None
        if console.is_terminal:
            columns = (*counting_columns(), TextColumn("{task.fields[note]}"))
            self.progress = Progress(*columns, console=console)
            self.progress.start()
            self.bar = self.progress.add_task(label, total=total, completed=start, note="")

    def advance(self, step: int) -> None:
        """Shows that `step` steps are done."""
        if self.progress is not None:
            self.progress.update(self.bar, completed=step)

    def note(self, step: int, values: Mapping[str, float], seconds_left: float) -> None:
        """Shows logged values."""
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.progress is not None:
            self.progress.update(self.bar, completed=step, note=text)
        else:
            minutes, seconds = divmod(int(seconds_left), 60)
            print(f"{self.label} {step}/{self.total} left {minutes}:{seconds:02d} {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Stops the bar."""
        if self.progress is not None:
            self.progress.stop()


@dataclass
class Window:
    """Sums of logged values since the last log line, kept on the device until they are read.

    steps: finished steps. begun: finished steps and the current one.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    begun: int = 0
    data_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add(self, parts: dict[str, Tensor]) -> None:
        """Adds the values of a step, or of a part of one."""
        for name, value in parts.items():
            value = torch.as_tensor(value).detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
