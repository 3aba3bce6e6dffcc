"""Data sets of photos whose captions were made, of renders."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import load_dataset

from faceclip.captions.colors import Reading
from faceclip.captions.photographs import conclude
from faceclip.data.records import caption_to_dict, features
from faceclip.data.writing import encode_png, write_shard


def write_captioned_photos(renders: Path, root: Path, splits: Sequence[str] = ("test",)) -> Path:
    """Splits of `renders` at 64 px in the layout of photos of which a reader knows the regions; the folder ROOT/set."""
    points, counts = np.zeros((478, 2)), {}
    schema = features(labelled=False, read=True).arrow_schema
    (root / "set" / "data").mkdir(parents=True)
    for split in splits:
        rows = []
        for number, row in enumerate(load_dataset(str(renders), split=split, cache_dir=str(root / "hf"))):
            read = {
                name: Reading(value=row["attributes"][name], confidence=0.9) for name in ("clothes_color", "expression")
            }
            seen = conclude(np.asarray(row["regions"]), points, read, number)
            given = {name: row[name] for name in features(labelled=False) if name in row}
            given |= {name: encode_png(np.asarray(row[name])) for name in ("image", "shading")}
            given |= {"person": f"person {row['identity']}", "key": str(number), "placement": [64, 64, 0, 0, 64]}
            given |= {"regions": encode_png(seen.regions), "landmarks_478": points.tolist()}
            given |= {"attributes": seen.attributes, "confidence": seen.confidence}
            rows.append(given | {"captions": [caption_to_dict(caption) for caption in seen.captions]})
        counts[split] = {"identities": len({row["identity"] for row in rows}), "images": len(rows)}
        write_shard(root / "set" / "data" / f"{split}-000000.parquet", pa.Table.from_pylist(rows, schema=schema))
    about = {"request": {"captions": ["made"]}, "counts": counts, "files": []}
    (root / "set" / "dataset.json").write_text(json.dumps(about))
    return root / "set"
