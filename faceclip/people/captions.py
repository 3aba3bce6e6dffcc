"""Captions of a render from its labels, by the grammar that photographs share (`faceclip.captions.grammar`)."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from faceclip.captions.grammar import sentences
from faceclip.captions.visibility import visible_regions
from faceclip.data.records import VOCABULARIES, Caption
from faceclip.errors import DataError


def describe(
    attributes: Mapping[str, str], regions: NDArray[np.uint8], generator: np.random.Generator
) -> list[Caption]:
    """Returns four captions of one portrait: short and long attributes, the emotion alone, and both.

    `attributes` has a value of `VOCABULARIES` for every name; `regions` (S, S) is the label map, and decides
    what is visible. The same generator state gives the same captions. Raises `DataError` for unknown values.
    """
    for name, values in VOCABULARIES.items():
        if attributes.get(name) not in values:
            raise DataError(f"attribute {name}={attributes.get(name)!r}: expected one of {', '.join(values)}")
    return sentences(attributes, visible_regions(regions), generator)
