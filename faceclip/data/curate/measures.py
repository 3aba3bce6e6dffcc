"""What a measure is: a pure function from one picture to figures, one column each.

A measure knows no threshold. Its name, version and columns decide the key of the results on disk: whoever changes what
a measure computes raises its version.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from faceclip.errors import ConfigError
from faceclip.faces.looks import Face, FaceDetector
from faceclip.faces.upright import detect_upright

Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One decoded picture. pixels (H, W, 3): uint8 RGB, upright by EXIF; encoded: bytes of its file."""

    pixels: NDArray[np.uint8]
    encoded: int
    detector: FaceDetector

    @cached_property
    def grey(self) -> NDArray[np.uint8]:
        """Luma (H, W)."""
        return cv2.cvtColor(self.pixels, cv2.COLOR_RGB2GRAY)

    @cached_property
    def faces(self) -> list[Face]:
        """Every face, the largest first."""
        return sorted(detect_upright(self.pixels, self.detector), key=lambda face: -face.area)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A named group of columns that one function computes.

    columns: name → type; a figure that does not exist for a picture (the sharpness of a face where there is none) is
    None. compute: the figures of a picture, one for every column; it keeps nothing from one picture to the next.
    """

    name: str
    version: int
    columns: Mapping[str, pa.DataType] = field(default_factory=dict)
    compute: Callable[[Picture], Figures]

    @property
    def facts(self) -> str:
        """What decides the figures, as part of the key of stored results."""
        return f"{self.name} {self.version}: {', '.join(f'{name} {kind}' for name, kind in self.columns.items())}"


def load_plugin(place: str) -> Measure:
    """The measure at MODULE:NAME, one's own code: a `Measure`, or a function without arguments that makes one.

    Raises ConfigError when there is no such module or name, the function needs arguments, or something else is there.
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
    """Raises ConfigError for a column that two measures, or a measure and the rows themselves, have."""
    owners = dict.fromkeys(reserved, "the rows")
    for measure in measures:
        for column in measure.columns:
            if column in owners:
                raise ConfigError(
                    f"plugins: column {column!r} of measure {measure.name!r} is one of {owners[column]}: rename it"
                )
            owners[column] = measure.name
