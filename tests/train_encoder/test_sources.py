"""Stage 1 by its command on data sets of other people: mapped parquet, an image folder, FaceCaption-15M."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.errors import ConfigError
from faceclip.training import parse_config
from tests.stages import SMALL_ENCODER, run
from train_encoder.__main__ import main
from train_encoder.config import EncoderConfig
from train_encoder.features import check_data

SMALL = [
    *SMALL_ENCODER,
    "trainer.batch_size=3",
    "trainer.num_threads=1",
    "trainer.steps=2",
    "trainer.log_every=1",
    "trainer.validate_every=0",
    "validation_queries=8",
    "sampling.images=2",
]


def test_training_on_mapped_parquet(parquet, tower_arguments, tmp_path):
    mapping = {
        "data": {
            "path": str(parquet),
            "columns": {
                "image": "photo",
                "captions": ["words"],
                "identity": "who",
                "landmarks": "points",
                "split": "fold",
            },
            "train": "a",
            "validation": "b",
        }
    }
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    status, output = run(
        main, "--config", str(tmp_path / "mapping.yaml"), *tower_arguments, *SMALL, f"out={tmp_path / 'run'}"
    )
    assert status == 0, output
    assert "0 of 40 rows unusable" in output
    assert "composed_joint" in output
    assert (tmp_path / "run" / "export" / "config.json").is_file()
    assert list((tmp_path / ".features").glob("train-faces-*/00000.safetensors"))


def write_folder(root: Path, arrays: FaceArrays, split: str) -> None:
    for i in range(len(arrays)):
        path = root / split / f"p{arrays.identity[i]}" / f"{arrays.index[i]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(arrays.images[i])).save(path)
        path.with_suffix(".txt").write_text("\n".join(c.text for c in arrays.captions[i]))


def test_training_on_an_image_folder(tiny_dataset, tower_arguments, tmp_path):
    for split in ("train", "validation"):
        write_folder(tmp_path / "photos", load_arrays(tiny_dataset, split), split)
    (tmp_path / "photos" / "train" / "p0" / "broken.png").write_bytes(b"\x89PNG no")
    (tmp_path / "photos" / "train" / "p0" / "broken.txt").write_text("a person")
    arguments = [f"data.path={tmp_path / 'photos'}", *tower_arguments, *SMALL, f"out={tmp_path / 'run'}"]
    # Faces are found by the detector; some renders of 64 px are too hard for it.
    status, output = run(main, *arguments, "data.max_bad_share=0.3", "data.few_pictures=drop")
    assert status == 0, output
    assert "unreadable_image 1" in output
    (report,) = (tmp_path / "photos" / ".features").glob("train-report-*.json")
    stored = json.loads(report.read_text())
    assert stored["rows"] == 33
    assert "p0/broken.png" in stored["examples"]["unreadable_image"][0]


def test_training_on_facecaption(facecaption, towers, tower_arguments, tmp_path):
    path, images = facecaption
    arguments = [
        f"data.path={path}",
        "data.layout=facecaption",
        f"data.images={images}",
        *tower_arguments,
        *SMALL,
        f"out={tmp_path / 'run'}",
        "data.max_bad_share=0.4",
        "data.validation_share=0.3",
    ]
    preset = [
        f"data.path={path}",
        "data.layout=facecaption",
        "data.identity=none",
        "trainer.best_metric=composed_joint",
    ]
    with pytest.raises(ConfigError, match=r"trainer\.best_metric=self_joint"):
        check_data(parse_config(EncoderConfig, preset))
    status, output = run(main, *arguments, "data.identity=none", "trainer.best_metric=self_joint")
    assert status == 0, output
    assert "no_image 1" in output
    assert "self_joint" in output
