"""What can be seen of a portrait: a caption never states what cannot, so that hair color needs visible hair."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from faceclip.data.records import REGIONS
from faceclip.errors import DataError
from faceclip.storage.shards import ShardedArray

VISIBLE_SHARE = 0.004
"""A region is visible when it covers at least this share of the picture."""

_SHOWN_BY = {
    "hair_color": "hair",
    "hair_texture": "hair",
    "glasses": "glasses",
    "hat": "hat",
    "hat_color": "hat",
    "beard": "beard",
    "makeup": "lips",
    "clothes": "clothes",
    "clothes_color": "clothes",
}


def visible_regions(regions: NDArray[np.uint8]) -> frozenset[str]:
    """Returns names of the regions of a label map (S, S) that are large enough to be seen. Raises `DataError` for an
    unknown label."""
    share = np.bincount(regions.ravel(), minlength=len(REGIONS)) / regions.size
    if len(share) > len(REGIONS):
        raise DataError(f"region map holds label {len(share) - 1}, the last known one is {len(REGIONS) - 1}")
    return frozenset(name for name, part in zip(REGIONS, share, strict=True) if part >= VISIBLE_SHARE)


def seen_values(
    values: Mapping[str, NDArray[np.str_]], regions: NDArray[np.uint8] | ShardedArray
) -> dict[str, NDArray[np.str_]]:
    """Returns what N pictures show of their attributes: `values` (N,) by name, and "" where a value cannot be seen and
    no caption would state it (the hair color of a bald head, the length of hair under a hat). regions: (N, S, S)."""
    shares = np.stack([np.bincount(labels.ravel(), minlength=len(REGIONS)) for labels in regions]) / regions[0].size
    visible = dict(zip(REGIONS, (shares >= VISIBLE_SHARE).T, strict=True))
    seen = {name: words.copy() for name, words in values.items()}
    for name, region in _SHOWN_BY.items():
        seen[name][(values[name] != "none") & ~visible[region]] = ""
    bald = values["hair_length"] == "bald"
    seen["hair_length"][(values["hat"] != "none") | (~bald & ~visible["hair"])] = ""
    return seen
