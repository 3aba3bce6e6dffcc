"""A run goes on with the settings that it began with, or says which one differs."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from eval.judges.attributes import JudgeConfig
from eval.judges.second_recognizer import SecondRecognizerConfig
from faceclip.data.mapping import DataConfig
from faceclip.errors import CheckpointError
from faceclip.settings import setting
from faceclip.settings.fields import compared_on_resume
from faceclip.training import Trainer, TrainerConfig
from faceclip.training.checkpoints import load_checkpoint, save_checkpoint
from faceclip.training.continuation import check_same_run, check_steps, noted_run, noted_settings, settings_of
from tests.faceclip.training.test_trainer import Line, Numbers, config, weights
from train_encoder.config import EncoderConfig
from train_encoder.towers.clip import ClipConfig
from train_encoder.towers.fitter import FitterConfig
from train_encoder.towers.recognizer import RecognizerConfig
from train_generator.config import GeneratorConfig
from train_generator.towers.base import BaseConfig
from train_generator.towers.vae import VaeConfig


@dataclass(kw_only=True)
class Weights:
    square: float = 1.0


@dataclass(kw_only=True)
class Command:
    out: str = setting("runs/line", resume="free")
    loss: Weights = field(default_factory=Weights)


@pytest.mark.parametrize(
    ("changes", "command", "message"),
    [
        ({"learning_rate": 0.1}, Command(), r"trainer\.learning_rate was 0\.001, now 0\.1"),
        ({"betas": (0.9, 0.95)}, Command(), r"trainer\.betas was \[0\.9, 0\.99\], now \[0\.9, 0\.95\]"),
        ({"precision": "bf16"}, Command(), r"trainer\.precision was fp32, now bf16"),
        ({}, Command(loss=Weights(square=2.0)), r"loss\.square was 1\.0, now 2\.0"),
    ],
)
def test_changed_settings_are_named(tmp_path: Path, changes, command, message) -> None:
    def trainer(settings: Command, **changes) -> Trainer:
        return Trainer(config(**({"steps": 4} | changes)), Line(), Numbers(), tmp_path, settings=settings)

    trainer(Command()).fit()
    before = weights(tmp_path)
    with pytest.raises(CheckpointError, match=rf"\({message}\).*out=DIR"):
        trainer(command, **changes).fit()
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())
    # What says nothing about the weights may change.
    assert trainer(Command(out="elsewhere"), steps=6, save_every=2, log_every=1, num_threads=None).fit().step == 6


def test_a_run_does_not_go_back_and_says_when_it_is_done(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Trainer(config(steps=8), Line(), Numbers(), tmp_path).fit()
    assert "nothing left" not in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"step 8, .*trainer\.steps=4: .*trainer\.steps=8\b"):
        Trainer(config(steps=4), Line(), Numbers(), tmp_path).fit()
    assert Trainer(config(steps=8), Line(), Numbers(), tmp_path).fit().step == 8
    assert "already at step 8, nothing left to train" in capsys.readouterr().out


def test_older_checkpoints_are_resumed(tmp_path: Path) -> None:
    """They tell no settings, and were written after validation."""
    Trainer(config(steps=4), Line(), Numbers(), tmp_path).fit()
    tensors, facts = load_checkpoint(tmp_path / "checkpoints" / "step-00000004")
    old = {name: facts[name] for name in ("step", "best", "run")}
    save_checkpoint(tmp_path / "checkpoints", 4, tensors, old)
    assert not (tmp_path / "checkpoints" / "step-00000004" / "later.json").exists()
    assert Trainer(config(steps=8, learning_rate=0.1), Line(), Numbers(), tmp_path).fit().step == 8
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [4, 8]


COMMANDS = {
    "encoder": EncoderConfig(data="DIR"),
    "encoder, data=": EncoderConfig(data=DataConfig(path="DIR")),
    "generator": GeneratorConfig(),
    "recognizer": RecognizerConfig(),
    "second_recognizer": SecondRecognizerConfig(),
    "attributes": JudgeConfig(),
    "clip": ClipConfig(),
    "fitter": FitterConfig(),
    "vae": VaeConfig(region_weights={"hair": 2.0}),
    "base": BaseConfig(region_weights={"hair": 2.0}),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_settings_that_a_resumed_run_must_not_change(name: str) -> None:
    """A new field is compared unless its `setting` says "free": add it here then."""
    expected = json.loads((Path(__file__).parent / "compared_on_resume.json").read_text())[name]
    assert sorted(settings_of(TrainerConfig(), COMMANDS[name])) == expected


def test_a_policy_counts_for_values_and_not_for_the_groups_that_hold_them() -> None:
    @dataclass(kw_only=True)
    class Holder:
        inner: Weights = setting(factory=Weights, resume="free")
        table: dict[str, float] = setting(factory=lambda: {"a": 1.0}, resume="free")
        path: Path = Path("x")

    assert compared_on_resume(Holder()) == {"inner.square": 1.0, "path": Path("x")}
    assert settings_of(TrainerConfig(), Holder())["path"] == "x"


def test_what_differs_is_named_and_what_one_side_lacks_is_unknown(tmp_path: Path) -> None:
    ours = {"a": 1, "b": "x", "c": [1, 2], "only ours": 1}
    check_same_run(tmp_path, ours, {"a": 1, "b": "x", "c": [1, 2], "only theirs": 3})
    check_same_run(tmp_path, ours, {"loss.latent_identity": 0.0})
    with pytest.raises(CheckpointError, match=r"loss\.latent_identity was 0\.35"):
        check_same_run(tmp_path, ours, {"loss.latent_identity": 0.35})
    check_same_run(tmp_path, ours, {})
    with pytest.raises(CheckpointError) as refusal:
        check_same_run(tmp_path, ours, {"a": 2, "b": "y", "c": [1, 2]})
    assert "(a was 2, now 1, b was y, now x)" in str(refusal.value) and str(tmp_path) in str(refusal.value)


def test_other_processes_take_the_same_samples_if_accumulation_makes_up_for_them(tmp_path: Path) -> None:
    theirs = {"processes": 2, "accumulate": 3, "seed": 0}
    for ours in (theirs, theirs | {"processes": 1, "accumulate": 6}, theirs | {"processes": 6, "accumulate": 1}):
        check_same_run(tmp_path, ours, theirs)
    for changes in ({"processes": 1}, {"processes": 3, "accumulate": 3}, {"processes": 1, "accumulate": 6, "seed": 1}):
        with pytest.raises(CheckpointError) as refusal:
            check_same_run(tmp_path, theirs | changes, theirs)
        assert ("seed was 0, now 1" in str(refusal.value)) == ("seed" in changes)
        assert ("product is 6" in str(refusal.value)) == ("seed" not in changes)
    with pytest.raises(CheckpointError, match=r"\(accumulate was 3, now 4\)"):
        check_same_run(tmp_path, theirs | {"accumulate": 4}, theirs)


def test_what_older_checkpoints_leave_unsaid() -> None:
    run = {"seed": 1}
    assert noted_run({"run": run}) == {"seed": 1, "layout": "replicated", "init": "none"}
    assert noted_run({"run": run | {"layout": "zero-2", "init": "aa"}}) == {"seed": 1, "layout": "zero-2", "init": "aa"}
    assert noted_run({"run": run, "settings": {"init": ""}})["init"] == "none"
    assert "init" not in noted_run({"run": run, "settings": {"init": "hub/model"}})
    settings = noted_settings({"settings": {"frozen": "bf16"}})
    assert settings == {"trainer.moments": "fp32", "adapter.shading_layers": "all", "frozen": "bf16"}
    with pytest.raises(CheckpointError, match=r"trainer\.moments was fp32, now int8"):
        check_same_run(Path("run"), settings_of(TrainerConfig(moments="int8"), None), noted_settings({}))


def test_a_run_may_end_where_its_checkpoint_stands_and_no_earlier(tmp_path: Path) -> None:
    check_steps(tmp_path, 8, 8)
    check_steps(tmp_path, 8, 9)
    with pytest.raises(CheckpointError, match=r"step 8, .*trainer\.steps=7\b"):
        check_steps(tmp_path, 8, 7)


def test_settings_of_nested_parts_have_dotted_keys() -> None:
    found = settings_of(config(learning_rate=0.5), Command(loss=Weights(square=3.0)))
    assert found["loss.square"] == 3.0 and found["trainer.learning_rate"] == 0.5
    assert found["trainer.betas"] == [0.9, 0.99]  # as JSON gives it back
    assert not {"out", "loss", "trainer", "trainer.seed", "trainer.steps"} & found.keys()
    assert settings_of(config(), None).keys() == {key for key in found if key.startswith("trainer.")}
