"""Photos whose captions were made: CLIP towers and stage 1 train on them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from faceclip.data.arrays import UNKNOWN
from tests.photo_sets import write_captioned_photos
from tests.stages import SMALL_ENCODER, run, save_towers
from train_encoder.__main__ import main
from train_encoder.towers import clip


@pytest.fixture(scope="module")
def photos(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captioned")
    return write_captioned_photos(tiny_dataset, root, ("train", "validation", "test"))


def test_towers_and_stage_1_train_on_photos(photos, tmp_path):
    sizes = ["image.width=32", "image.layers=1", "image.heads=2", "text_l.width=24", "text_l.layers=1", "embed_dim=24"]
    sizes += ["text_g.width=32", "text_g.layers=1", "trainer.batch_size=8", "trainer.warmup_steps=1"]
    status, output = run(clip.main, f"data={photos}", f"out={tmp_path / 'clip'}", "trainer.steps=2", *sizes)
    assert status == 0, output
    export = tmp_path / "clip" / "export"
    card = (export / "image_tower" / "README.md").read_text()
    assert "license: other" in card and "8 photographs of 2 people" in card and "faceclip.people" not in card
    assert json.loads((export / "text_tower_g" / "metrics.json").read_text())["data"]["photos"]

    (recognizer,) = (word for word in save_towers(tmp_path / "towers") if word.startswith("towers.recognizer"))
    towers = [
        f"towers.{name}={export}/{folder}"
        for name, folder in (("text_l", "text_tower_l"), ("text_g", "text_tower_g"), ("image", "image_tower"))
    ]
    trainer = [
        "trainer.batch_size=4",
        "trainer.steps=2",
        "trainer.best_metric=composed_joint",
        "trainer.validate_every=2",
    ]
    words = [f"data={photos}", f"out={tmp_path / 'run'}", recognizer, *towers, *SMALL_ENCODER, *trainer]
    status, output = run(main, *words, "trainer.warmup_steps=1", "validation_queries=8")
    assert status == 0, output
    assert (tmp_path / "run" / "export" / "image_tower" / "config.json").is_file()


def test_photos_without_attributes_have_no_towers(photos, tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    for file in (photos / "data").iterdir():
        table = pq.read_table(file)
        table = table.drop_columns(["attributes", "regions", "confidence", "landmarks_478"])
        pq.write_table(table, tmp_path / "set" / "data" / file.name)
    (tmp_path / "set" / "dataset.json").write_text((photos / "dataset.json").read_text())
    status, output = run(clip.main, f"data={tmp_path / 'set'}", f"out={tmp_path / 'clip'}", "trainer.steps=1")
    assert status == 2 and "captions=made" in output


def test_unknown_attributes_do_not_count():
    task = clip.ClipTask(torch.nn.ModuleDict(), [2, 3], Path("."), embed_dim=4, attributes=1.0)
    embeddings, stated = torch.randn(2, 4), torch.ones(2, 2, dtype=torch.bool)
    classes = torch.tensor([[1, UNKNOWN], [0, 2]])
    known = task.attribute_loss(embeddings, torch.tensor([[1, 0], [0, 2]]), torch.tensor([[True, False], [True, True]]))
    assert task.attribute_loss(embeddings, classes, stated).item() == pytest.approx(known.item())
