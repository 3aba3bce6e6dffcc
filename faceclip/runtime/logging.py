"""Training logs: JSON lines, TensorBoard, and a progress display with the estimated time left."""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes `log.jsonl` and `tensorboard/` below a run directory; on resume, lines past the step are
    dropped.
    """

    def __init__(self, directory: Path, *, start: int) -> None:
        self.path = Path(directory) / "log.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._forget_after(start)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115 (open for the whole run)
        self._board = SummaryWriter(str(Path(directory) / "tensorboard"), purge_step=start or None)

    def write(self, step: int, values: Mapping[str, float], *, kind: str) -> None:
        """One record; `kind` is "train" or "validation"."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        self._board.close()

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
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, self.path)


class Display:
    """A progress bar on a terminal, plain lines with the time left elsewhere."""

    def __init__(self, total: int, start: int, label: str) -> None:
        self.total, self.label = total, label
        console = Console(file=sys.stderr)
        self.progress = None
        if console.is_terminal:
            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            columns += [
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            ]
            self.progress = Progress(*columns, console=console)
            self.progress.start()
            self.bar = self.progress.add_task(label, total=total, completed=start, note="")

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        if self.progress is not None:
            self.progress.update(self.bar, completed=step)

    def note(self, step: int, values: Mapping[str, float], seconds_left: float) -> None:
        """Show logged values."""
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self.progress is not None:
            self.progress.update(self.bar, completed=step, note=text)
        else:
            minutes, seconds = divmod(int(seconds_left), 60)
            print(
                f"{self.label} {step}/{self.total} left {minutes}:{seconds:02d} {text}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.progress is not None:
            self.progress.stop()


@dataclass
class Window:
    """Sums since the last log line; they stay on the device until then."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    data_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add(self, parts: dict[str, Tensor]) -> None:
        """Add the values of a step, or of a part of one."""
        for name, value in parts.items():
            value = torch.as_tensor(value).detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
