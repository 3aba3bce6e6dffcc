"""Photos whose captions were made: CLIP towers and stage 1 train on them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from faceclip.data.arrays import UNKNOWN, load_arrays
from faceclip.data.records import Caption, Phrase
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
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
    assert "rendered" not in card
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


def with_captions(photos: Path, root: Path, split: str, vague: Sequence[int] | None) -> Path:
    """A copy of the photos where some portraits of a split (None: all) have one caption that is true of all of it."""
    folder = Path(shutil.copytree(photos, root / "set", ignore=shutil.ignore_patterns(".arrays")))
    (file,) = (folder / "data").glob(f"{split}-*.parquet")
    table = pq.read_table(file)
    rows = table.to_pylist()
    phrase = {"text": "a face", "start": 0, "end": 6, "region": "skin", "attributes": ["expression"]}
    for number, row in enumerate(rows):
        row["attributes"]["expression"] = "neutral"
        if vague is None or number in vague:
            row["captions"] = [{"text": "a face", "kind": "attributes", "phrases": [phrase]}]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    return folder


def small_towers() -> dict[str, torch.nn.Module]:
    sizes = {"layers": 1, "heads": 2, "embed_dim": 8, "width": 16}
    texts = {f"text_tower_{letter}": TextTower(**sizes, vocabulary=list(range(256, 4000))) for letter in "lg"}
    return {"image_tower": ImageTower(**sizes, image_size=64, patch_size=32)} | texts


def test_a_vague_caption_is_no_query_and_decides_for_no_other(photos, tmp_path):
    folder = with_captions(photos, tmp_path, "train", [0])
    figures = clip.measure(small_towers(), folder, "train")
    portraits = len(load_arrays(folder, "train", size=64, labelled=False))
    assert len(figures) == 8
    for name, figure in figures.items():
        assert int(name.split("_of_")[1].split("_")[0]) > 1
        assert 0 < figure.count < portraits + name.startswith("image_to_text")


def test_classes_of_any_sizes_are_asked():
    """Captions that state one attribute of two classes: those of the small class have more wrong partners."""
    phrase = Phrase(text="a man", start=0, end=5, region="skin", attributes=("sex",))
    caption = Caption(text="a man", kind="attributes", phrases=(phrase,))
    for sizes, distractors in (((99, 400), 99), ((95, 105), 95), ((150, 150), 100)):
        classes = np.repeat([0, 1], sizes)
        arrays = SimpleNamespace(attributes={"sex": classes}, captions=[[caption]] * len(classes))
        asked = clip.find_questions(arrays, "here")
        assert asked.distractors == distractors and len(asked.rows(asked.matches)) == len(classes)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_nothing_to_measure_is_said_before_the_training(photos, tmp_path, split):
    folder = with_captions(photos, tmp_path, split, None)
    status, output = run(clip.main, f"data={folder}", f"out={tmp_path / 'clip'}", "trainer.steps=1")
    assert status == 2 and f"the {split} split" in output
    assert not (tmp_path / "clip" / "checkpoints").exists()


def test_unknown_attributes_do_not_count():
    task = clip.ClipTask(torch.nn.ModuleDict(), [2, 3], Path("."), embed_dim=4, attributes=1.0)
    embeddings, stated = torch.randn(2, 4), torch.ones(2, 2, dtype=torch.bool)
    classes = torch.tensor([[1, UNKNOWN], [0, 2]])
    known = task.attribute_loss(embeddings, torch.tensor([[1, 0], [0, 2]]), torch.tensor([[True, False], [True, True]]))
    assert task.attribute_loss(embeddings, classes, stated).item() == pytest.approx(known.item())
