"""The data card of a curated set: README.md with the header that `datasets` and the hub read."""

from collections.abc import Mapping
from typing import Any

import yaml


def data_card(summary: Mapping[str, Any], *, named: bool) -> str:
    """Returns the Markdown text of the card.

    `summary` is the content of curation.json. `named` says whether the rows have a column `person`.
    """
    source = summary["source"]
    header: dict[str, Any] = {"license": "other", "task_categories": ["text-to-image"]}
    kept = {split: count for split, count in summary["kept"].items() if count}
    if summary["pictures"] != "none" and kept:
        files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in kept]
        header["configs"] = [{"config_name": "default", "data_files": files}]
    rows = "\n".join(
        f"| {split} | {count:,} | {summary['kept'][split]:,} |" for split, count in summary["rows"].items()
    )
    dropped = "\n".join(f"| {name} | {count:,} |" for name, count in summary["dropped"].items() if count)
    licence = source["licence"] or "not stated: that of the pictures, which whoever curated them has to know"
    origin = " ".join(filter(None, (source["name"], source["revision"]))) or "pictures of the one who ran it"
    holds = {"copy": "holds the picture itself", "paths": "names the file by its path (`data.images`)"}
    columns = (
        ""
        if summary["pictures"] == "none"
        else f"""
`image` {holds[summary["pictures"]]}, `captions`, `key`{" and `person`" if named else ""} come from the source, and
so do `landmarks` and `box` where it has them. Otherwise `landmarks` are five points (x, y) of the largest face, in
pixels of the upright picture, where faces were measured.
"""
    )
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---
# Curated photographs

Chosen by `python -m faceclip.data.curate` from {origin}. Nothing was drawn or changed.

- Licence: {licence}
- Consent of the people shown is that of the source; curation adds none.

| split | pictures | kept |
| --- | --- | --- |
{rows}

Pictures are dropped by (one picture may have several reasons):

| reason | pictures |
| --- | --- |
{dropped or "| none | 0 |"}
{columns}
`measures/` holds the figures of every picture, `decisions/` what became of it, `curation.json` the thresholds.
Detectors of faces, text and drawings err, and not equally for everybody: look at `report.html` before you rely on the
choice.
"""
