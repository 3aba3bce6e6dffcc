"""Every tower command for a few steps on real renders: it learns, exports what `from_pretrained` reads,
measures.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.judges import attributes, second_recognizer
from eval.judges.networks import Judge, SecondRecognizer
from faceclip.face3d.fitter import FaceFitter
from faceclip.storage.folders import verify
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from train_encoder.towers import clip, fitter, recognizer

QUICK = ["trainer.batch_size=16", "trainer.warmup_steps=2", "trainer.log_every=5", "trainer.save_every=0"]
QUICK += ["trainer.validate_every=0", "trainer.device=cpu"]
SMALL_TEXT = "{width: 32, layers: 1, heads: 2}"
CASES = {
    "recognizer": (recognizer, FaceViT, ["model.image_size=36", "model.width=48", "model.heads=2", "model.depth=1"]),
    "second_recognizer": (second_recognizer, SecondRecognizer, ["model.widths=[8,16]", "model.image_size=32"]),
    "attributes": (attributes, Judge, ["model.widths=[8,16]", "model.hidden=32"]),
    "fitter": (fitter, FaceFitter, ["model.widths=[8,16]", "model.depths=null", "model.hidden=32", "model.looks=1"]),
}


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("name", list(CASES))
def test_command_learns_exports_and_measures(name: str, tiny_dataset: Path, tmp_path: Path) -> None:
    module, kind, options = CASES[name]
    words = [f"data={tiny_dataset}", f"out={tmp_path / 'run'}", f"export={tmp_path / 'tower'}", "trainer.steps=20"]
    assert module.main([*words, *QUICK, *options]) == 0
    history = losses(tmp_path / "run")
    assert history[-1] < history[0]
    kind.from_pretrained(tmp_path / "tower")
    assert not (tmp_path / "tower" / "manifest.json").exists()
    sealed = tmp_path / "run" / "export"
    assert verify(sealed) is None
    assert {path.name for path in sealed.iterdir()} == {path.name for path in (tmp_path / "tower").iterdir()} | {
        "manifest.json"
    }
    stored = load_file(sealed / "diffusion_pytorch_model.safetensors")
    assert not any(tensor.dtype == torch.float32 for tensor in stored.values())
    facts = json.loads((tmp_path / "tower" / "metrics.json").read_text())
    assert facts["steps"] == 20 and facts["samples"] == 320 and facts["data"]["seed"] == 7
    card = (tmp_path / "tower" / "README.md").read_text()
    assert str(tiny_dataset) not in card and f"python -m {module.__name__} data=DIR" in card
    for figure in facts["metrics"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_clip_command_exports_three_towers(tiny_dataset: Path, tmp_path: Path) -> None:
    sizes = ["image.width=48", "image.layers=2", "image.heads=2", "image.patch_size=16", "embed_dim=16"]
    sizes += [f"text_l={SMALL_TEXT}", f"text_g={SMALL_TEXT}"]
    assert clip.main([f"data={tiny_dataset}", f"out={tmp_path}", "trainer.steps=20", *QUICK, *sizes]) == 0
    history = losses(tmp_path)
    assert history[-1] < history[0]
    export = tmp_path / "export"
    ImageTower.from_pretrained(export / "image_tower")
    left, right = (TextTower.from_pretrained(export / f"text_tower_{letter}") for letter in "lg")
    assert left.config.vocabulary == right.config.vocabulary and len(left.config.vocabulary) < 1000
    assert (export / "text_tower_g" / "metrics.json").exists()


def test_a_fitter_starts_from_another(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data={tiny_dataset}", "trainer.steps=1", *QUICK, *CASES["fitter"][2]]
    assert fitter.main([*words, f"out={tmp_path / 'first'}"]) == 0
    first = tmp_path / "first" / "export"
    still = ["trainer.learning_rate=1e-12", "trainer.weight_decay=0", "trainer.seed=5", f"init={first}"]
    assert fitter.main([*words, *still, f"out={tmp_path / 'second'}"]) == 0
    found, expected = (
        load_file(run / "diffusion_pytorch_model.safetensors") for run in (tmp_path / "second" / "export", first)
    )
    assert found.keys() == expected.keys()
    learned = [name for name in found if "running" not in name and "num_batches" not in name]
    assert len(learned) > 20 and all(torch.equal(found[name], expected[name]) for name in learned)
    assert "init=DIR" in (tmp_path / "second" / "export" / "README.md").read_text()
    capsys.readouterr()
    assert fitter.main([*words, f"init={first}", "model.hidden=16", f"out={tmp_path / 'third'}"]) == 2
    assert "a fitter of other sizes, hidden=32 where the configuration has 16" in capsys.readouterr().err


def test_a_finished_tower_is_measured_anew(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its card gets figures of the weights as they are and keeps what it says of the training."""
    small = ["model.widths=[8,16]", "model.hidden=32", f"data={tiny_dataset}"]
    assert attributes.main([*small, f"out={tmp_path}", "trainer.steps=2", *QUICK]) == 0
    export = tmp_path / "export"
    before = json.loads((export / "metrics.json").read_text())
    file = export / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    weights = file.read_bytes()
    assert attributes.main(["--measure", str(export), *small]) == 0
    after = json.loads((export / "metrics.json").read_text())
    assert after["metrics"] != before["metrics"]
    assert {**after, "metrics": None} == {**before, "metrics": None}
    assert file.read_bytes() == weights
    assert f"`{before['command']}`" in (export / "README.md").read_text()
    capsys.readouterr()

    def refused(*words: str) -> str:
        assert attributes.main(["--measure", *words]) == 2
        return capsys.readouterr().err

    assert "error: --measure: name an export" in refused(*small)
    assert "error: --measure: name an export" in refused()
    assert "data: name the data set directory" in refused(str(export))
    (export / "metrics.json").write_text(json.dumps({**before, "data": {**before["data"], "seed": 8}}))
    other = refused(str(export), *small)
    assert f"data={tiny_dataset} " in other and "`python -m faceclip.people --out DIR" in other and "--seed 8" in other
    (export / "metrics.json").write_text(json.dumps(before))
    file.write_bytes(weights[:1000])
    assert "cannot be loaded as Judge" in refused(str(export), *small)
    (export / "metrics.json").unlink()
    assert "cannot read the card" in refused(str(export), *small)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: data: name the data set directory, as in data=DIR"),
        (["data=/nowhere"], "dataset.json"),
        (["data=/nowhere", "model.hiden=3"], "hidden"),
    ],
)
def test_bad_input_is_named(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert attributes.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_launcher_of_several_processes_is_refused(monkeypatch, tiny_dataset, tmp_path, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert recognizer.main([f"data={tiny_dataset}", f"out={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "the launcher started 2: run python -m train_encoder.towers.recognizer without it" in error
    assert not (tmp_path / "run").exists()
