"""Stage 2 on photos whose captions were made: words are compared with the regions that were read."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import load_dataset

from faceclip.captions.colors import Reading
from faceclip.captions.photographs import conclude
from faceclip.data.arrays import UNKNOWN, load_arrays
from faceclip.data.records import PHOTO_VOCABULARIES, SPLITS, caption_to_dict, features
from faceclip.data.writing import encode_png, write_shard
from faceclip.errors import DataError
from faceclip.face3d.camera import Camera, project
from faceclip.face3d.dense_points import default_dense_points
from train_generator.__main__ import main

READINGS = {
    "expression": Reading(value="smile", confidence=0.9),
    "mouth": Reading(value="open", confidence=0.8),
    "hair_color": Reading(value="brown", confidence=0.95),
    "glasses": Reading(value="none", confidence=0.9),
    "clothes_color": Reading(value="beige", confidence=0.6),
}


@pytest.fixture(scope="module")
def photos(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Renders in the layout of photos, with what a reader would say of each in place of their labels."""
    root = tmp_path_factory.mktemp("captioned")
    places = default_dense_points()
    points = places.of(project(places.head.vertices(), Camera(scale=1.2), 64))[:, :2]
    for split in SPLITS[:2]:
        rows = []
        for number, row in enumerate(
            load_dataset(str(tiny_dataset), split=split, cache_dir=str(root / "hf")).select(range(8))
        ):
            labels = np.asarray(row["regions"])
            seen = conclude(labels, points, READINGS if number % 4 else {}, number)
            given = {name: row[name] for name in features(labelled=False) if name in row}
            given |= {name: encode_png(np.asarray(row[name])) for name in ("image", "shading")}
            rows.append(
                given
                | {
                    "person": f"person {row['identity']}",
                    "key": str(number),
                    "placement": [64, 64, 0, 0, 64],
                    "regions": encode_png(seen.regions),
                    "attributes": seen.attributes,
                    "confidence": seen.confidence,
                    "landmarks_478": points.tolist(),
                    "captions": [caption_to_dict(caption) for caption in seen.captions],
                }
            )
        (root / "set" / "data").mkdir(parents=True, exist_ok=True)
        schema = features(labelled=False, read=True).arrow_schema
        write_shard(root / "set" / "data" / f"{split}-000000.parquet", pa.Table.from_pylist(rows, schema=schema))
    (root / "set" / "dataset.json").write_text('{"files": []}')
    return root / "set"


def test_arrays_hold_what_was_read(photos):
    arrays = load_arrays(photos, "train", labelled=False)
    assert arrays.are_photos and arrays.vocabularies == PHOTO_VOCABULARIES and arrays.regions is not None
    assert arrays.attribute_values("mouth").tolist() == ["", "open", "open", "open"] * 2
    assert (arrays.attributes["sex"] == UNKNOWN).all() and (arrays.attributes["clothes_color"] == UNKNOWN).all()
    assert arrays.seen_values["glasses"].tolist() == ["", "none", "none", "none"] * 2
    assert {phrase.region for row in arrays.captions for c in row for phrase in c.phrases} >= {"hair", "lips", "skin"}
    with pytest.raises(DataError, match=r"holds photos.*eval\.retrieval"):
        load_arrays(photos, "train")


def test_words_are_aligned_with_regions_of_photos(arguments, photos, tmp_path, capsys):
    out = tmp_path / "run"
    torch.manual_seed(0)
    kept = [word for word in arguments if not word.startswith(("data=", "cache=", "loss."))]
    short = ["trainer.device=cpu", "trainer.steps=1", "trainer.log_every=1", "sample_steps=1"]
    words = [
        *kept,
        *short,
        "dropout.text=0",
        "dropout.all=0",
        f"data={photos}",
        f"cache={tmp_path / 'cache'}",
        f"out={out}",
        "loss.identity=0",
        "loss.alignment=0.001",
    ]
    assert main(words) == 0, capsys.readouterr()
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    aligned = [line["loss_alignment"] for line in logged if "loss_alignment" in line]
    assert aligned and min(aligned) > 0
