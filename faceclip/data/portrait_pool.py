"""Prepares the rows of a block in threads or processes, in order.

Rows are read and pictures located in the calling process, so that an index of millions of URLs exists once; decoding,
detection and cutting, which cost the time, run in the workers.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import cv2
from numpy.typing import NDArray

from faceclip.data.cells import RejectedRecord
from faceclip.data.frames import Framing
from faceclip.data.mapping import DataConfig, RawRecord, RowMapping
from faceclip.data.portrait_reader import FoundPortrait, PortraitReader
from faceclip.data.worker_pool import WorkerPool
from faceclip.errors import DataError

Usable = tuple[int, RawRecord, FoundPortrait]  # its row number first
Outcome = Usable | RejectedRecord
Job = tuple[int, RawRecord, Future[FoundPortrait]] | RejectedRecord


class PortraitPool:
    """Prepares blocks of rows with `config.workers` workers; a context manager.

    `mapping` and `reader` belong to the same source.
    """

    def __init__(self, config: DataConfig, mapping: RowMapping, reader: PortraitReader) -> None:
        self.config, self.mapping, self.reader = config, mapping, reader
        self.pool: Executor = ThreadPoolExecutor(config.workers)
        self.action: Callable[..., FoundPortrait] = reader.prepare
        if config.worker_kind == "processes":
            arguments = (replace(config, images=""), reader.crop_size, reader.picture_size, reader.framing)
            self.pool, self.action = WorkerPool(config.workers, _start, arguments), _prepare

    def __enter__(self) -> "PortraitPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def prepare(
        self, rows: Sequence[Mapping[str, Any]], start: int, landmarks: Mapping[int, NDArray] | None = None
    ) -> list[Outcome]:
        """Returns the outcome of each row from number `start` on: (number, record, portrait), or why it is unusable.

        landmarks: of usable rows by their numbers, if they are known; other rows are then left out. Raises DataError if
        a worker process dies.
        """
        try:
            jobs = [
                self._submit(number, row, landmarks)
                for number, row in enumerate(rows, start)
                if landmarks is None or number in landmarks
            ]
            return [_outcome(job) for job in jobs]
        except BrokenProcessPool as error:
            raise DataError(
                f"a worker process died at rows {start} to {start + len(rows)} (out of memory?): use fewer "
                "data.workers and run again, it resumes here"
            ) from error

    def _submit(self, number: int, row: Mapping[str, Any], landmarks: Mapping[int, NDArray] | None) -> Job:
        try:
            raw = self.mapping.read(row, number)
            source, scale = self.reader.locate(raw)
        except RejectedRecord as rejected:
            return rejected
        known = None if landmarks is None else landmarks[number]
        return number, raw, self.pool.submit(self.action, raw, source, scale, known)


def _outcome(job: Job) -> Outcome:
    if isinstance(job, RejectedRecord):
        return job
    number, raw, future = job
    try:
        return number, raw, future.result()
    except RejectedRecord as rejected:
        return rejected


_reader: PortraitReader | None = None  # of this worker process


def _start(config: DataConfig, crop_size: int, picture_size: int, framing: Framing | None) -> None:
    global _reader
    cv2.setNumThreads(1)  # one worker, one core
    _reader = PortraitReader(config, folder=None, crop_size=crop_size, picture_size=picture_size, framing=framing)


def _prepare(*located: Any) -> FoundPortrait:
    assert _reader is not None  # `_start` ran first in this process
    return _reader.prepare(*located)
