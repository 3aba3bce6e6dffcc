"""From the shipped tiny towers to generated faces and a retrieval report, in one command.

python -m eval.demo --out runs/demo

Finished stages are skipped when the command is run again; an interrupted one resumes where it stopped. A stage whose
command changed, and all after it, start from nothing; so does everything after an upgrade of the package or weights.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from eval.demo.process import Stopped, run_command, stop_on_signals
from eval.demo.records import TIMES, Records, shipped
from eval.demo.stages import DemoConfig, Stage, make_stages, remaining_seconds
from faceclip.errors import FaceClipError
from faceclip.settings import check_bounds, run, setting
from faceclip.training.checkpoints import make_folder


class StageFailedError(FaceClipError):
    """A stage's command ended with an error; the message names its log."""


def run_stage(stage: Stage, log: Path, on_tick: Callable[[float], None]) -> float:
    """Runs one command with its output in `log`; returns seconds. Raises StageFailedError with the log's end."""
    began = time.monotonic()
    status = run_command(stage.command, log, on_tick)
    if status:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:])
        raise StageFailedError(
            f"stage {stage.name} ended with status {status}; its log is {log}, the end of which is:\n{end}"
        )
    return time.monotonic() - began


def run_demo(root: Path, config: DemoConfig, console: Console) -> Path:
    """Runs what is missing; returns the report's path. Raises ForeignFolderError, StageFailedError."""
    stages = make_stages(root, config)
    records = Records(root, stages, shipped())
    removed = records.clear_stale()
    before = records.finished
    if before:
        console.print(f"already finished: {', '.join(before)}")
    if removed:
        console.print(f"changed since it ran, or made from what changed; starting again: {', '.join(removed)}")
    todo = [stage for stage in stages if stage.name not in before]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        overall = bar.add_task("demo", total=sum(stage.expected for stage in stages), left="")
        finished = sum(stage.expected for stage in stages if stage.name in before)
        for number, stage in enumerate(stages, start=1):
            if stage not in todo:
                continue
            task = bar.add_task(f"{number}/{len(stages)} {stage.title}", total=1.0, left="")

            def tick(elapsed: float, stage: Stage = stage, task=task, finished: float = finished) -> None:
                fraction = stage.progress()
                left = remaining_seconds(stages, records.finished, stage, elapsed, fraction)
                shown = fraction if fraction is not None else min(0.95, elapsed / stage.expected)
                bar.update(task, completed=shown)
                minutes = f"about {max(1, round(left / 60))} min left"
                bar.update(overall, completed=finished + shown * stage.expected, left=minutes)

            records.begin(stage)
            seconds = run_stage(stage, records.log(stage), tick)
            records.finish(stage, seconds)
            finished += stage.expected
            bar.update(task, completed=1.0, left=f"{seconds:.0f} s")
            bar.update(overall, completed=finished, left="")
    return root / "report.html"


@dataclass(frozen=True, kw_only=True)
class DemoSettings(DemoConfig):
    """Where the demo runs, and its sizes, which must go together."""

    out: Path = setting(Path("runs/demo"), "folder of the demo")

    def __post_init__(self) -> None:
        check_bounds(self, "--")  # before those of the stages, which have other names
        make_stages(self.out, self)


def demonstrate(settings: DemoSettings) -> int:
    """Runs the demo; returns the exit status."""
    console = Console()
    make_folder(settings.out, "--out ", (TIMES,))
    try:
        with stop_on_signals():
            path = run_demo(settings.out, settings, console)
    except StageFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print("stopped; the same command resumes from here", file=sys.stderr)
        return 128 + stop.number
    console.print(f"\nreport: [bold]{path.resolve()}[/bold]")
    return 0


main = partial(run, demonstrate, DemoSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
