"""Every tower command for a few steps on real renders: it learns, exports what `from_pretrained` reads,
measures.
"""

import json
from pathlib import Path

import pytest

from eval.judge import Judge, SecondRecognizer
from faceclip.errors import ConfigError, DataError
from faceclip.face3d.fitter import FaceFitter
from faceclip.face_encoder import FaceViT
from faceclip.image_tower import ImageTower
from faceclip.text_tower import TextTower
from train_encoder.towers import clip, fitter, judge, recognizer, second_recognizer

QUICK = ["trainer.batch_size=16", "trainer.warmup_steps=2", "trainer.log_every=5", "trainer.save_every=0"]
QUICK += ["trainer.validate_every=0", "trainer.device=cpu"]
SMALL_TEXT = "{width: 32, layers: 1, heads: 2}"
CASES = {
    "recognizer": (recognizer, FaceViT, ["model.image_size=36", "model.width=48", "model.heads=2", "model.depth=1"]),
    "second_recognizer": (second_recognizer, SecondRecognizer, ["model.widths=[8,16]", "model.image_size=32"]),
    "judge": (judge, Judge, ["model.widths=[8,16]", "model.hidden=32"]),
    "fitter": (fitter, FaceFitter, ["model.widths=[8,16]", "model.hidden=32"]),
}


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("name", list(CASES))
def test_command_learns_exports_and_measures(name: str, tiny_dataset: Path, tmp_path: Path) -> None:
    module, kind, options = CASES[name]
    words = [f"data={tiny_dataset}", f"out={tmp_path / 'run'}", f"export={tmp_path / 'tower'}", "trainer.steps=20"]
    module.main([*words, *QUICK, *options])
    history = losses(tmp_path / "run")
    assert history[-1] < history[0]
    kind.from_pretrained(tmp_path / "tower")
    facts = json.loads((tmp_path / "tower" / "metrics.json").read_text())
    assert facts["steps"] == 20 and facts["samples"] == 320 and facts["data"]["seed"] == 7
    card = (tmp_path / "tower" / "README.md").read_text()
    assert str(tiny_dataset) not in card and f"python -m train_encoder.towers.{name} data=DIR" in card
    for figure in facts["metrics"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_clip_command_exports_three_towers(tiny_dataset: Path, tmp_path: Path) -> None:
    sizes = ["image.width=48", "image.layers=2", "image.heads=2", "image.patch_size=16", "embed_dim=16"]
    sizes += [f"text_l={SMALL_TEXT}", f"text_g={SMALL_TEXT}"]
    clip.main([f"data={tiny_dataset}", f"out={tmp_path}", "trainer.steps=20", *QUICK, *sizes])
    history = losses(tmp_path)
    assert history[-1] < history[0]
    export = tmp_path / "export"
    ImageTower.from_pretrained(export / "image_tower")
    left, right = (TextTower.from_pretrained(export / f"text_tower_{letter}") for letter in "lg")
    assert left.config.vocabulary == right.config.vocabulary and len(left.config.vocabulary) < 1000
    assert (export / "text_tower_g" / "metrics.json").exists()


def test_a_command_without_data_says_so() -> None:
    with pytest.raises(ConfigError, match="data=DIR"):
        judge.main([])


def test_a_missing_data_set_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json"):
        judge.main([f"data={tmp_path}"])
