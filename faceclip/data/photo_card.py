"""The data card of a data set of photos."""

from collections.abc import Mapping
from typing import Any

from faceclip.data.records import REGIONS


def card(summary: Mapping[str, Any]) -> str:
    """Returns the text of README.md with the YAML header that `datasets` and the hub read."""
    files = "\n".join(f"      - split: {split}\n        path: data/{split}-*.parquet" for split in summary["counts"])
    lines = "\n".join(
        f"| {split} | {part['identities']:,} | {part['images']:,} |" for split, part in summary["counts"].items()
    )
    return f"""---
configs:
  - config_name: default
    data_files:
{files}
---
# Portraits cut from photos

Written by `python -m faceclip.data.photos` at {summary["request"]["size"]} px; licence and consent are those of the
photos.

| split | persons | pictures |
| --- | --- | --- |
{lines}

`image`, `landmarks_5` (px, given or detected), `identity`, `person`, `key` and `captions` come from the photos.
`shape`, `expression`, `pose`, `camera`, `light`, `landmarks_68` and `shading` are estimates of the fitter
`{summary["fitter"]}`. {_about_labels(summary["request"].get("captions"))}{_about_masks(summary["request"])}"""


def _about_masks(request: Mapping[str, Any]) -> str:
    if not request.get("masks"):
        return ""
    return """
`masks` has the masks that the rows gave to words, cut as the portraits are, as bits of an RGB picture: bit b of
channel c is the region "mask N" of phrases, N = 8 c + b."""


def _about_labels(captions: list[str] | None) -> str:
    if captions is None:
        return "There are no attributes and no region maps."
    return f"""`attributes` ("" is unknown), `confidence`, `regions`, `landmarks_478`
and the captions with phrases are what was read off the photos ({captions[1]}); nobody checked them.
Labels of the region map: {", ".join(f"{label} {name}" for label, name in enumerate(REGIONS))}."""
