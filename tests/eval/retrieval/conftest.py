"""Photos whose captions were made."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import load_dataset

from faceclip.captions.photographs import conclude
from faceclip.data.records import caption_to_dict, features
from faceclip.data.writing import encode_png, write_shard


@pytest.fixture(scope="session")
def captioned_photos(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split of renders in the layout of photos of which a reader knows the regions."""
    root = tmp_path_factory.mktemp("captioned")
    points, rows = np.zeros((478, 2)), []
    for number, row in enumerate(load_dataset(str(tiny_dataset), split="test", cache_dir=str(root / "hf"))):
        seen = conclude(np.asarray(row["regions"]), points, {}, number)
        given = {name: row[name] for name in features(labelled=False) if name in row}
        given |= {name: encode_png(np.asarray(row[name])) for name in ("image", "shading")}
        given |= {"person": f"person {row['identity']}", "key": str(number), "placement": [64, 64, 0, 0, 64]}
        given |= {"regions": encode_png(seen.regions), "landmarks_478": points.tolist()}
        given |= {"attributes": seen.attributes, "confidence": seen.confidence}
        rows.append(given | {"captions": [caption_to_dict(caption) for caption in seen.captions]})
    schema = features(labelled=False, read=True).arrow_schema
    (root / "set" / "data").mkdir(parents=True)
    write_shard(root / "set" / "data" / "test-000000.parquet", pa.Table.from_pylist(rows, schema=schema))
    (root / "set" / "dataset.json").write_text('{"files": []}')
    return root / "set"
