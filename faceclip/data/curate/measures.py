"""A measure is a pure function from one picture to figures, one per column.

Measures know no thresholds. The name, version and columns of a measure identify its results on disk, so raise the
version whenever a measure computes something else.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from faceclip.errors import ConfigError
from faceclip.faces.looks import (
    Attempt,
    CoarseDetector,
    Coarsely,
    Face,
    FaceDetector,
    attempts_for,
    detect_with_retries,
    look_reduced,
)
from faceclip.faces.upright import detect_upright

Figures = Mapping[str, Any]
SMALLEST = 20  # px, smallest face of MTCNN's usual search


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One decoded picture.

    pixels (H, W, 3): uint8 RGB, turned upright by EXIF. encoded: size of its file in bytes. detector: finds its faces.
    turned: whether faces are also looked for on their side and upside down. detect_px: longer side at which they are
    looked for first; 0: at the picture's own. coarse: side in px of the smallest face looked for by the detector, which
    is a `CoarseDetector` then; 0: what the detector finds.
    """

    pixels: NDArray[np.uint8]
    encoded: int
    detector: FaceDetector
    turned: bool = True
    detect_px: int = 0
    coarse: int = 0

    @cached_property
    def grey(self) -> NDArray[np.uint8]:
        """Luma, uint8 (H, W)."""
        return cv2.cvtColor(self.pixels, cv2.COLOR_RGB2GRAY)

    @cached_property
    def faces(self) -> list[Face]:
        """All detected faces, the largest first."""
        found: list[Face] = []
        if 0 < self.detect_px < max(self.grey.shape):
            zoom = self.detect_px / max(self.grey.shape)
            found = look_reduced(self.pixels, self.detect_px, lambda small, attempts: self._look(small, zoom, attempts))
        return sorted(found or self._look(self.pixels, 1.0, None), key=lambda face: -face.area)

    def _look(self, view: NDArray[np.uint8], zoom: float, attempts: Sequence[Attempt] | None) -> list[Face]:
        """The faces in a view that is `zoom` times as large as the picture."""
        detector: FaceDetector = self.detector
        if self.coarse:
            zoom *= (attempts or attempts_for(*view.shape[:2]))[0].scale  # large pictures are looked at smaller
            smallest = max(SMALLEST, round(self.coarse * min(zoom, 1.0)))
            detector = Coarsely(detector=cast(CoarseDetector, self.detector), smallest=smallest)
        if self.turned:
            return detect_upright(view, detector, attempts, close=self.detector)
        return detect_with_retries(view, detector, attempts)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A named group of columns that one function computes.

    columns: name → Arrow type. compute: returns one figure per column, None for a figure that does not exist (the
    sharpness of a face in a picture without faces). It keeps no state between pictures.
    """

    name: str
    version: int
    columns: Mapping[str, pa.DataType] = field(default_factory=dict)
    compute: Callable[[Picture], Figures]

    @property
    def facts(self) -> str:
        """A text that changes whenever the figures may change; part of the key of stored results."""
        return f"{self.name} {self.version}: {', '.join(f'{name} {kind}' for name, kind in self.columns.items())}"


def load_plugin(place: str) -> Measure:
    """Loads the measure at MODULE:NAME, which is a `Measure` or a function without arguments that returns one.

    Raises ConfigError if the module or name does not exist, the function needs arguments, or the result is no Measure.
    """
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        made = found if isinstance(found, Measure) else found() if callable(found) else None
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"plugins: {place!r} cannot be loaded ({error}): expected MODULE:NAME of a Measure"
        ) from error
    if not isinstance(made, Measure):
        raise ConfigError(f"plugins: {place!r} is no {Measure.__module__}.Measure and makes none")
    return made


def check_columns(measures: Sequence[Measure], reserved: Sequence[str]) -> None:
    """Raises ConfigError if two measures have a column of the same name, or if a column's name is `reserved`."""
    owners = dict.fromkeys(reserved, "the rows")
    for measure in measures:
        for column in measure.columns:
            if column in owners:
                raise ConfigError(
                    f"plugins: column {column!r} of measure {measure.name!r} is one of {owners[column]}: rename it"
                )
            owners[column] = measure.name
