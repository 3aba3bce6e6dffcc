"""Stage 1 end to end on random towers: it learns, resumes exactly, and refuses bad input."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train_encoder.__main__
import train_generator.__main__
from faceclip.data.arrays import load_arrays
from faceclip.data.portraits import check_apart
from faceclip.encoder import FaceCLIP
from faceclip.errors import ConfigError, DataError
from faceclip.people.__main__ import main as people
from faceclip.towers.image import ImageTower
from faceclip.training import parse_config
from tests.stages import (
    SMALL_ENCODER,
    kill_after_checkpoint,
    run,
    same_weights,
    save_towers,
    start,
    stop_before_checkpoints,
)
from train_encoder.__main__ import main
from train_encoder.config import PRESETS, EncoderConfig, LossConfig
from train_encoder.features import load_features
from train_encoder.queries import QuerySource
from train_encoder.task import TERMS, EncoderTask
from train_encoder.towers_io import load_towers
from train_encoder.validation import FIGURES, SINGLE_FIGURES


@pytest.fixture(scope="module")
def arguments(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("stage1")
    towers = save_towers(root / "towers")
    trainer = [
        "trainer.batch_size=4",
        "trainer.num_threads=1",
        "trainer.log_every=5",
        "trainer.validate_every=0",
        "trainer.best_metric=null",
        "validation_queries=8",
        "trainer.warmup_steps=2",
    ]
    return [f"data={tiny_dataset}", f"cache={root / 'cache'}", *towers, *SMALL_ENCODER, *trainer]


def test_two_halves_with_a_kill_equal_one_run(arguments, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, output = run(main, *arguments, f"out={whole}", "trainer.steps=12", "trainer.save_every=6")
    assert status == 0, output
    process = start("train_encoder", *arguments, f"out={broken}", "trainer.steps=12", "trainer.save_every=6")
    assert kill_after_checkpoint(process, broken, signal.SIGKILL) == -signal.SIGKILL
    assert not (broken / "export").exists()
    status, output = run(main, *arguments, f"out={broken}", "trainer.steps=12", "trainer.save_every=6")
    assert status == 0, output
    assert same_weights(whole / "export", broken / "export")

    model = FaceCLIP.from_pretrained(whole / "export")
    tower = ImageTower.from_pretrained(whole / "export" / "image_tower")
    query = model.embed(["a person with red hair"], torch.rand(1, 3, 36, 36)).joint
    gallery = model.embed_gallery(torch.rand(3, 32), tower(torch.rand(3, 3, 64, 64)).embedding)
    assert (query @ gallery.T).shape == (1, 3)


def test_a_run_on_other_towers_or_data_is_not_resumed(arguments, tiny_dataset, tmp_path, capsys):
    words = [*arguments, "trainer.steps=2", f"out={tmp_path / 'run'}", "trainer.device=cpu"]
    assert main(words) == 0, capsys.readouterr()
    torch.manual_seed(9)
    other = ImageTower(image_size=32, patch_size=8, width=32, layers=2, heads=2, embed_dim=32)
    other.save_pretrained(tmp_path / "image")
    before = (tmp_path / "run" / "export" / "manifest.json").read_bytes()
    assert main([*words, f"towers.image={tmp_path / 'image'}"]) == 2
    assert "cannot resume exactly (image was " in capsys.readouterr().err
    assert (tmp_path / "run" / "export" / "manifest.json").read_bytes() == before

    assert main([*words, "loss.joint=2"]) == 2
    assert "cannot resume exactly (loss.joint was 1.0, now 2.0); use another" in capsys.readouterr().err
    assert (tmp_path / "run" / "export" / "manifest.json").read_bytes() == before

    data = load_arrays(tiny_dataset, "train").content_hash[:16]
    facts = json.loads((tmp_path / "run" / "checkpoints" / "step-00000002" / "state.json").read_text())["run"]
    assert facts["data"] == data and len({facts[name] for name in ("recognizer", "text_l", "text_g", "image")}) == 4


def test_loss_falls(arguments, tmp_path):
    status, output = run(main, *arguments, f"out={tmp_path}", "trainer.steps=40", "trainer.log_every=10")
    assert status == 0, output
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.85 * losses[0]
    assert {
        "loss_face",
        "loss_text",
        "loss_image",
        "loss_joint",
        "loss_tokens",
        "samples_per_second",
        "data_percent",
        "grad_norm",
    } <= lines[0].keys()
    for term in TERMS:
        scales, biases = (
            [line[f"logit_{what}_{term}"] for line in lines if line["kind"] == "train"] for what in ("scale", "bias")
        )
        assert scales[0] == pytest.approx(math.exp(LossConfig().log_scale), rel=0.1) and len(set(scales)) == 4
        assert biases[0] == pytest.approx(LossConfig().bias, rel=0.1) and len(set(biases)) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits(arguments, tmp_path, number):
    endless = ["trainer.steps=100000", "trainer.save_every=0", "trainer.log_every=1"]
    process = start("train_encoder", *arguments, f"out={tmp_path}", *endless)
    status, output, step = stop_before_checkpoints(process, tmp_path, number)
    assert status == 128 + number
    assert step > 0 and f"saved at step {step}; the same command resumes" in output and "Traceback" not in output


@pytest.mark.parametrize("command", [train_encoder.__main__, train_generator.__main__])
def test_an_interrupt_that_does_not_wait_for_the_step_is_one_line(monkeypatch, capsys, command):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "prepare", interrupted)
    assert command.main([]) == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes from the last checkpoint\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sampling.imagse=3", "images"),
        ("towers.recognizer=/nowhere", "/nowhere"),
        ("data=data/nowhere", "data=data/nowhere: no such folder; make it by `python -m faceclip.people"),
        ("sampling.images=9", "fewer than sampling.images=9"),
        ("trainer.batch_size=many", "batch_size"),
        ("validation_queries=0", "validation_queries: must be at least 1, got 0"),
        ("trainer.best_metric=composed_jonit", "composed_jonit is not among composed_joint, "),
    ],
)
def test_bad_input_is_named(arguments, tmp_path, change, message):
    status, output = run(main, *arguments, f"out={tmp_path / 'run'}", change)
    assert status == 2
    assert message in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [("loss.text=-1", r"^loss\.text: .* -1\.0$"), ("loss.log_scale=.nan", r"^loss\.log_scale: .* nan$")],
)
def test_impossible_losses_are_named(word, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(EncoderConfig, [word], presets=PRESETS)


def test_people_in_both_splits_are_refused(arguments):
    config = parse_config(EncoderConfig, arguments, presets=PRESETS)
    features = load_features(config.data, "validation", load_towers(config.towers), config.cache_path)
    count = len(np.unique(features.portraits.identity))
    with pytest.raises(DataError, match=rf"^{count} persons are in .*\(as identity \d+\)"):
        check_apart(features.portraits, features.portraits)


def test_figures_are_those_of_validation(arguments):
    config = parse_config(EncoderConfig, arguments, presets=PRESETS)
    towers = load_towers(config.towers)
    model = FaceCLIP.from_components(
        towers.recognizer, towers.text_l, towers.text_g, fusion=vars(config.fusion), joint=vars(config.heads)
    )
    for single, figures in ((False, FIGURES), (True, SINGLE_FIGURES)):
        features = replace(load_features(config.data, "validation", towers, config.cache_path), single=single)
        task = EncoderTask(model, towers.image, config.loss, features, 4)
        assert tuple(task.validate(0)) == task.figures() == figures


def test_one_picture_per_person_is_named(towers, tmp_path):
    arguments = ["--out", str(tmp_path), "--identities", "4", "--images-per-identity", "1", "--size", "64"]
    status, output = run(people, *arguments, "--workers", "1", "--splits", "2", "2", "0")
    assert status == 0, output
    config = EncoderConfig(data=str(tmp_path))
    with pytest.raises(DataError, match=r"\bvalidation split\b(?!.*data\.)"):
        load_features(config.data, "validation", towers, config.cache_path)
    # Only remedies that this layout knows.
    with pytest.raises(DataError, match=r"^2 persons .*sampling\.images=4\b(?!.*data\.)"):
        QuerySource(load_features(config.data, "train", towers, config.cache_path), config.sampling)
