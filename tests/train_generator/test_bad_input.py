"""Bad input of stage 2 is refused by name before anything is trained."""

import pytest

from faceclip.encoder import FaceCLIP
from faceclip.errors import ConfigError
from faceclip.training import parse_config
from tests.stages import run, save_base
from tests.train_generator.conftest import word_of
from train_generator.__main__ import main
from train_generator.config import PRESETS, DropoutConfig, GeneratorConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("encoder=/nowhere", "encoder=/nowhere cannot be loaded; give a stage-1 export"),
        ("dropout.text=1.5", "dropout.text"),
        ("same_picture=1.5", "same_picture: must be at least 0 and at most 1, got 1.5"),
        ("base=/nowhere", "/nowhere"),
        ("loss.identiti=0", "identity"),
        ("adapter.identity.enabled=false", "adapter.shading"),
    ],
)
def test_bad_input_is_named(arguments, tmp_path, change, message):
    status, output = run(main, *arguments, f"out={tmp_path / 'run'}", change)
    assert status == 2
    assert message in output


@pytest.mark.parametrize("name", ["size", "validation_rows", "sample_steps", "loss.identity_rows"])
def test_numbers_below_one_are_named_before_anything_runs(name):
    with pytest.raises(ConfigError, match=rf"^{name}: .*\b0$"):
        parse_config(GeneratorConfig, [f"{name}=0"], presets=PRESETS)


def test_an_empty_fitter_folder_is_named(arguments, tmp_path, capsys):
    (tmp_path / "fitter").mkdir()
    assert main([*arguments, f"out={tmp_path / 'run'}", f"fitter={tmp_path / 'fitter'}"]) == 2
    assert f"error: fitter={tmp_path / 'fitter'} cannot be loaded" in capsys.readouterr().err


def test_an_encoder_without_its_image_tower_is_refused(arguments, tmp_path, capsys):
    encoder = word_of(arguments, "encoder")
    FaceCLIP.from_pretrained(encoder).save_pretrained(tmp_path / "encoder")
    assert main([*arguments, f"out={tmp_path / 'run'}", f"encoder={tmp_path / 'encoder'}"]) == 2
    assert "no image_tower beside the encoder" in capsys.readouterr().err


def test_a_base_of_another_width_is_refused(arguments, tmp_path):
    other = save_base(tmp_path / "wide", context=96)
    status, output = run(main, *arguments, f"out={tmp_path / 'run'}", f"base={other}")
    assert status == 2
    assert "width 96" in output
    assert "gives 64" in output


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("loss.min_snr_gamma=-1", r"^loss\.min_snr_gamma: .* -1\.0$"),
        ("loss.identity=.nan", r"^loss\.identity: .* nan$"),
        ("adapter.identity.heads=0", r"^adapter\.identity\.heads: .* 0$"),
        ("adapter.identity.num_tokens=0", r"^adapter\.identity\.num_tokens: .* 0$"),
    ],
)
def test_impossible_settings_are_named(word, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(GeneratorConfig, [word], presets=PRESETS)


def test_dropout_shares_are_checked():
    with pytest.raises(ValueError, match=r"dropout\.face"):
        DropoutConfig(face=-0.1)
    with pytest.raises(ValueError, match="reference"):
        DropoutConfig(all=0.5, reference=0.5)
