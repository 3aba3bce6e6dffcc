"""A progress bar with the time left for work that is not a training loop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def counting_columns() -> tuple[ProgressColumn, ...]:
    """Returns the columns of a bar that counts: title, bar, m/n, elapsed time, time left."""
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )


@contextmanager
def bar(title: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
    """Yields a function `advance(done, total)`. The bar appears with the first call, so finished work shows nothing.

    total: None if it is unknown.
    """
    progress = Progress(*counting_columns(), transient=True)
    task = None

    def advance(done: int, count: int | None) -> None:
        nonlocal task
        if task is None:
            progress.start()
            task = progress.add_task(title, total=count)
        progress.update(task, completed=done)

    try:
        yield advance
    finally:
        progress.stop()
