"""Stage 2 end to end on a random base: it resumes exactly, exports a loadable pipeline, and validates."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

import train_generator.__main__
from faceclip.encoder import FaceCLIP
from faceclip.towers.image import ImageTower
from faceclip.training import parse_config
from makeup_plugin import FaceMakeUpPipeline
from tests.stages import kill_after_checkpoint, run, same_weights, save_base, start, stop_before_checkpoints
from tests.train_generator.conftest import features_of, word_of
from train_generator.__main__ import main
from train_generator.adapter import add_adapter
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.loading import build_pipeline
from train_generator.task import GeneratorTask


def test_two_halves_with_a_kill_equal_one_run(arguments, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    steps = ["trainer.steps=8", "trainer.save_every=4"]
    status, output = run(main, *arguments, f"out={whole}", *steps)
    assert status == 0, output
    process = start("train_generator", *arguments, f"out={broken}", *steps)
    assert kill_after_checkpoint(process, broken, signal.SIGKILL) == -signal.SIGKILL
    status, output = run(main, *arguments, f"out={broken}", *steps)
    assert status == 0, output
    assert same_weights(whole / "export", broken / "export")

    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    losses = {f"loss_{name}" for name in ("noise", "alignment", "identity")}
    assert losses | {"samples_per_second"} <= lines[0].keys()
    assert (whole / "samples" / "000008.png").is_file()

    pipeline = FaceMakeUpPipeline.from_pretrained(whole / "export")
    pipeline.set_progress_bar_config(disable=True)
    face = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    points = np.array([[24, 28], [40, 28], [32, 38], [26, 46], [38, 46]], np.float32)
    image = pipeline(
        "a person",
        face,
        landmarks=points,
        num_inference_steps=2,
        height=64,
        width=64,
        output_type="np",
        shading_scale=0.0,
        generator=torch.Generator().manual_seed(0),
    ).images
    assert image.shape == (1, 64, 64, 3)


def test_sigterm_saves_and_exits(arguments, tmp_path):
    endless = ["trainer.steps=100000", "trainer.save_every=0", "trainer.log_every=1"]
    process = start("train_generator", *arguments, f"out={tmp_path}", *endless)
    status, output, step = stop_before_checkpoints(process, tmp_path, signal.SIGTERM)
    assert status == 143 and step > 0 and f"saved at step {step}; the same command resumes" in output


@pytest.mark.parametrize(("name", "same"), [("zero-3", True), ("zero-2", False), ("replicated", False)])
def test_ranks_that_gather_weights_of_each_other_do_the_same_work(arguments, tmp_path, monkeypatch, name, same):
    monkeypatch.setattr(train_generator.__main__, "layout", lambda accelerator: name)
    words = [*arguments, f"out={tmp_path / 'run'}", "trainer.device=cpu"]
    trainer = train_generator.__main__.prepare(parse_config(GeneratorConfig, words, presets=PRESETS))
    assert trainer.task.same_work == same


def test_a_run_on_another_encoder_is_not_resumed(arguments, tmp_path, capsys):
    """At its last step a resumed run would train nothing and export the old adapter with the new encoder."""
    words = [*arguments, f"out={tmp_path / 'run'}", "trainer.steps=2", "trainer.device=cpu", "licence=CC-BY-4.0"]
    assert main(words) == 0, capsys.readouterr()
    assert json.loads((tmp_path / "run" / "export" / "adapter.json").read_text())["licence"] == "CC-BY-4.0"
    encoder = Path(word_of(arguments, "encoder"))
    other = FaceCLIP.from_pretrained(encoder)
    with torch.no_grad():
        next(other.l.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path / "encoder")
    ImageTower.from_pretrained(encoder / "image_tower").save_pretrained(tmp_path / "encoder" / "image_tower")
    manifest = tmp_path / "run" / "export" / "manifest.json"
    before = manifest.read_bytes()
    assert main([*words, f"encoder={tmp_path / 'encoder'}"]) == 2
    error = capsys.readouterr().err
    assert "cannot resume exactly (encoder was " in error and "base was" not in error
    assert manifest.read_bytes() == before

    base = save_base(tmp_path / "base")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    with torch.no_grad():
        unet.conv_in.weight.add_(1e-3)
    unet.save_pretrained(base / "unet")
    assert main([*words, f"base={base}"]) == 2
    assert "cannot resume exactly (base was " in capsys.readouterr().err

    base = save_base(tmp_path / "other")
    scheduler = DDIMScheduler.from_pretrained(base / "scheduler", beta_end=0.013)
    scheduler.save_pretrained(base / "scheduler")
    assert main([*words, f"base={base}"]) == 2
    assert "cannot resume exactly (base was " in capsys.readouterr().err
    assert main([*words, "trainer.steps=3"]) == 0, capsys.readouterr()


def test_a_validation_draws_fixed_people_and_tells_figures_that_choose_the_best(arguments, tmp_path, capsys):
    words = [*arguments, "trainer.device=cpu", "trainer.steps=2", f"out={tmp_path / 'run'}", "fitter=tiny/fitter"]
    words += ["validation_pictures=3", "trainer.best_metric=picture_identity"]
    assert main(words) == 0, capsys.readouterr()
    line = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert -1 <= line["picture_identity"] <= 1 and round(3 * line["picture_identity_rank1"], 4) in (0, 1, 2, 3)
    assert -1 <= line["picture_text"] <= 1 and 0 <= line["picture_pose"] < 180
    assert (tmp_path / "run" / "best" / "adapter.json").is_file()
    config = parse_config(GeneratorConfig, words, presets=PRESETS)
    pipeline = build_pipeline(config)
    add_adapter(pipeline, config.adapter)
    task = GeneratorTask(pipeline, config, features_of(config, pipeline))
    assert {"step", "kind", *task.figures()} == line.keys()
    assert main([*words, f"out={tmp_path / 'other'}", "trainer.best_metric=picture_identiti"]) == 2
    assert "trainer.best_metric: picture_identiti" in capsys.readouterr().err
    assert main([*words, "validation_pictures=-1"]) == 2
    assert "validation_pictures" in capsys.readouterr().err


def test_options_of_the_loss_are_trained_with(arguments, tmp_path, capsys):
    """Offset noise, and faces told from those of others; both change what is learnt, and are compared on resume."""
    words = [*arguments, "trainer.device=cpu", "trainer.steps=2", "loss.identity=0.5", "loss.identity_below=999"]
    changes = {"plain": [], "offset": ["loss.offset_noise=0.1"], "others": ["loss.identity_contrast=0.5"]}
    for name, more in changes.items():
        assert main([*words, *more, f"out={tmp_path / name}"]) == 0, capsys.readouterr()
    assert not same_weights(tmp_path / "plain" / "export", tmp_path / "offset" / "export")
    assert not same_weights(tmp_path / "plain" / "export", tmp_path / "others" / "export")
    assert main([*words, "loss.identity_contrast=0.1", f"out={tmp_path / 'others'}"]) == 2
    assert "loss.identity_contrast was 0.5, now 0.1" in capsys.readouterr().err
    assert main([*words, f"out={tmp_path / 'offset'}"]) == 2
    assert "loss.offset_noise was 0.1, now 0.0" in capsys.readouterr().err
    assert main([*words, "loss.identity_temperature=0", f"out={tmp_path / 'others'}"]) == 2
    assert "loss.identity_temperature" in capsys.readouterr().err
