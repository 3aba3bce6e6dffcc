"""Commands one after another, in pieces: what is done stays done, what was stopped goes on, what fails is named."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from faceclip.errors import ConfigError, DataError
from faceclip.training import parse_config
from train_generator.towers import base, vae
from train_generator.towers.chain import PRESETS, TRY_AGAIN, ChainConfig, main, run_chain


def people(count: int) -> list[str]:
    words = f"--identities {count} --images-per-identity 1 --size 32 --workers 1 --quiet"
    return ["faceclip.people", "--out={out}/people", *words.split()]


def test_finished_stages_are_not_run_again(tmp_path: Path, capsys) -> None:
    config = ChainConfig(out=str(tmp_path), stages={"people": people(1), "poem": ["this"]})
    assert run_chain(config)
    assert json.loads((tmp_path / "people" / "dataset.json").read_text())["identities"] == 1
    assert "Namespaces" in (tmp_path / "logs" / "poem.log").read_text()
    stamp = (tmp_path / "logs" / "poem.log").stat().st_mtime_ns
    capsys.readouterr()
    assert run_chain(config) and capsys.readouterr().out == "people: done\npoem: done\n"
    assert (tmp_path / "logs" / "poem.log").stat().st_mtime_ns == stamp
    other = ChainConfig(out=str(tmp_path), stages=config.stages, more={"poem": ["again"]})
    assert run_chain(other) and (tmp_path / "logs" / "poem.log").stat().st_mtime_ns > stamp


def test_a_stage_is_stopped_in_time_and_the_next_ones_wait(tmp_path: Path) -> None:
    stages = {"endless": ["http.server", "0", "--bind", "127.0.0.1"], "poem": ["this"]}
    config = ChainConfig(out=str(tmp_path), stages=stages, seconds=1.5, grace=5)
    assert not run_chain(config)
    assert not list((tmp_path / "done").iterdir()) and not (tmp_path / "logs" / "poem.log").exists()
    assert run_chain(ChainConfig(out=str(tmp_path), stages=stages, only=["poem"]))


def test_a_stage_that_fails_is_named_with_its_log(tmp_path: Path, capsys) -> None:
    stages = {"people": people(0), "poem": ["this"]}
    with pytest.raises(DataError, match=r"^people: .*status 2; .*people\.log"):
        run_chain(ChainConfig(out=str(tmp_path), stages=stages))
    assert "--identities" in (tmp_path / "logs" / "people.log").read_text()
    assert not (tmp_path / "logs" / "poem.log").exists()


def test_the_command_says_when_to_try_again(tmp_path: Path, capsys) -> None:
    words = [f"out={tmp_path}", "only=[people]", "more.people=[--size=32]", "seconds=0.001", "grace=1"]
    assert main(words) == TRY_AGAIN
    assert "people: not done yet" in capsys.readouterr().out
    assert main([*words[:1], "only=[nobody]"]) == 2 and "only: " in capsys.readouterr().err


def test_words_for_a_gpu_come_before_ones_own() -> None:
    words = ["machine=gpu", "more.vae=[trainer.steps=7]", "out=runs/x"]
    config = parse_config(ChainConfig, ["--preset", "portraits", *words], presets=PRESETS)
    assert config.words("vae")[-1] == "trainer.steps=7" and "trainer.batch_size=32" in config.words("vae")
    assert "data=runs/x/people" in config.words("vae")
    assert "trainer.batch_size=32" not in ChainConfig(stages=config.stages, gpu=config.gpu).words("vae")


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_every_stage_is_a_command_that_takes_its_words(machine: str, capsys) -> None:
    """A parser names the first unknown word: with one more at the end, that one."""
    for preset in PRESETS.glob("*.yaml"):
        config = parse_config(ChainConfig, ["--preset", preset.stem, f"machine={machine}"], presets=PRESETS)
        for name in config.stages:
            module, *words = config.words(name)
            flags = words[0].startswith("--") and not words[0].startswith("--preset")
            packages = ("faceclip.people", "train_encoder", "train_generator")
            command = importlib.import_module(f"{module}.__main__" if module in packages else module)
            assert command.main([*words, *(["--nobody=1"] if flags else ["nobody=1"])]) == 2
            assert re.match(r"error: (--)?nobody: ", capsys.readouterr().err), name


def test_the_sizes_of_its_towers_fit_each_other() -> None:
    """On the meta device: shapes and divisibility are checked, nothing is allocated."""
    presets = Path(base.__file__).parent / "presets"
    kinds = {"vae": vae.VaeConfig, "base": base.BaseConfig}
    configs = {
        name: parse_config(kind, ["--preset", "portraits", "data=DIR"], presets=presets / name)
        for name, kind in kinds.items()
    }
    with torch.device("meta"):
        autoencoder = vae.make_model(configs["vae"].model, configs["vae"].size)
        latents = autoencoder.encode(torch.rand(1, 3, 128, 128)).latent_dist.mean
        unet = base.make_model(configs["base"].model, latents=latents.shape[1:3], context=224, pooled=128)
        added = {"text_embeds": torch.rand(1, 128), "time_ids": torch.rand(1, 6)}
        text = torch.rand(1, 77, 224)
        found = unet(latents, torch.zeros(1), encoder_hidden_states=text, added_cond_kwargs=added).sample
        assert found.shape == latents.shape == (1, 16, 16, 16)
        assert autoencoder.decode(found).sample.shape == (1, 3, 128, 128)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"seconds": -1.0}, "seconds"),
        ({"grace": -1.0}, "grace"),
        ({"stages": {}}, "stages"),
    ],
)
def test_settings_that_cannot_be(values, key):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        ChainConfig(**{"stages": {"poem": ["this"]}, **values})
