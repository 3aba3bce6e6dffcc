"""Measures one shard: takes some rows of a source and returns a table of figures. Every backend calls this."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from faceclip.data.cells import RejectedRecord
from faceclip.data.curate.catalog import ROW_COLUMNS, choose_measures
from faceclip.data.curate.measures import Measure, Picture
from faceclip.data.mapping import DataConfig
from faceclip.data.portrait_reader import REASONS, build_detector
from faceclip.data.rejects import RejectCounts
from faceclip.data.row_files import read_file
from faceclip.errors import ConfigError, FaceError
from faceclip.faces.images import load_image
from faceclip.faces.looks import CoarseDetector, Face, FaceDetector


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Names and settings of what a run measures, the same for all its shards. It holds no models."""

    measures: tuple[str, ...]
    plugins: tuple[str, ...]
    detector: str
    accept_non_commercial: bool
    max_pixels: int
    turned: bool = True
    detect_px: int = 0
    coarse: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row with its picture: encoded bytes or the path of a file; None if there is none, and then `rejected` says why.

    number: of the row in its split.
    """

    number: int
    key: str
    person: str
    picture: bytes | str | None
    rejected: RejectedRecord | None = None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One task of a backend. number: of the shard in its split."""

    number: int
    rows: tuple[Row, ...]
    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result of a task.

    table: `ROW_COLUMNS` and the columns of the measures. seconds: processor time of "decode", "detect" and each
    measure. rejected: counts and examples of the rows that were not measured.
    """

    number: int
    table: pa.Table
    seconds: dict[str, float]
    rejected: RejectCounts


def measure_shard(shard: Shard) -> Measured:
    """Measures the rows in their order. A row whose picture cannot be read gets a reason instead of figures.

    Raises ConfigError if a plugin returns other figures than its columns.
    """
    measures, detector = _tools(shard.plan)
    seconds = dict.fromkeys(("decode", "detect", *(measure.name for measure in measures)), 0.0)
    counts = RejectCounts(rows=len(shard.rows))
    lines: list[dict[str, Any]] = []
    for row in shard.rows:
        rejected, figures = row.rejected, {}
        if row.picture is not None:
            try:
                figures = _measured(row, measures, detector, shard.plan, seconds)
            except RejectedRecord as error:
                rejected = error
            except FaceError as error:
                rejected = RejectedRecord(REASONS.get(type(error), "unreadable_image"), str(error))
        if rejected:
            counts.add(rejected)
        reason = rejected.reason if rejected else ""
        lines.append({"row": row.number, "key": row.key, "person": row.person, "reason": reason, **figures})
    table = pa.Table.from_pylist(lines, schema=table_schema(measures))
    return Measured(number=shard.number, table=table, seconds=seconds, rejected=counts)


def table_schema(measures: Sequence[Measure]) -> pa.Schema:
    """Returns the columns of a table of figures: `ROW_COLUMNS` and those of the measures."""
    columns = dict(ROW_COLUMNS)
    for measure in measures:
        columns |= measure.columns
    return pa.schema(list(columns.items()))


def _measured(
    row: Row, measures: Sequence[Measure], detector: FaceDetector, plan: Plan, seconds: dict[str, float]
) -> dict[str, Any]:
    assert row.picture is not None
    start = time.process_time()
    data = row.picture if isinstance(row.picture, bytes) else read_file(Path(row.picture), row.key)
    clock = _Clock(detector)
    pixels = load_image(data, max_pixels=plan.max_pixels, name=row.key)
    picture = Picture(
        pixels=pixels,
        encoded=len(data),
        detector=clock,
        turned=plan.turned,
        detect_px=plan.detect_px,
        coarse=plan.coarse,
    )
    seconds["decode"] += time.process_time() - start
    figures: dict[str, Any] = {}
    for measure in measures:
        start, looked = time.process_time(), clock.seconds
        found = measure.compute(picture)
        detecting = clock.seconds - looked
        seconds["detect"] += detecting
        seconds[measure.name] += time.process_time() - start - detecting
        given = set(found) if isinstance(found, Mapping) else set()
        if given != set(measure.columns):
            raise ConfigError(
                f"plugins: measure {measure.name!r} computes {', '.join(map(str, given)) or 'no figures by name'}, but "
                f"its columns are {', '.join(measure.columns)}: correct one of them"
            )
        figures |= found
    return figures


class _Clock:
    """A detector that sums its processor seconds. Several measures share its results, so its time counts apart."""

    def __init__(self, detector: FaceDetector) -> None:
        self.detector, self.seconds = detector, 0.0

    def detect(self, image: NDArray[np.uint8], coarse: int | None = None) -> list[Face]:
        start = time.process_time()
        try:
            if coarse is None:
                return self.detector.detect(image)
            return cast(CoarseDetector, self.detector).detect(image, coarse)
        finally:
            self.seconds += time.process_time() - start


@lru_cache(maxsize=2)
def _tools(plan: Plan) -> tuple[list[Measure], FaceDetector]:
    """Loads the measures and the detector of a plan, once in each process."""
    cv2.setNumThreads(1)  # one worker, one core
    torch.set_num_threads(1)
    data = DataConfig(detector=plan.detector, accept_non_commercial=plan.accept_non_commercial)
    return choose_measures(plan.measures, plan.plugins), build_detector(data)
