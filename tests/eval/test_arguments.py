"""What a user may give wrongly is refused at once: status 2, one line that names the option, nothing written."""

import json
from pathlib import Path

import pytest

from eval.arguments import load_model
from eval.arms.__main__ import main as generation
from eval.demo import __main__ as demo
from eval.demo import showcase
from eval.judges.networks import Judge, SecondRecognizer
from eval.leakage import main as leakage
from eval.retrieval.__main__ import main as retrieval
from faceclip.errors import CheckpointError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like an export until it is loaded, which no test here should come to."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    return tmp_path / "model"


def refused(capsys, command, arguments: list[str], *words: str) -> None:
    assert command(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.count("\n") == 1
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--batch", "0"),
        ("--steps", "0"),
        ("--images-per-arm", "0"),
        ("--threads", "0"),
        ("--threads", "-1"),
        ("--seed", "-1"),
        ("--seed", str(2**70)),
        ("--guidance", "nan"),
        ("--guidance", "inf"),
        ("--guidance", "-2"),
        ("--judge", "/nowhere"),
        ("--second-recognizer", "/nowhere"),
        ("--model", "/nowhere"),
        ("--arms", ","),
        ("--device", "toaster"),
        ("--device", "cuda:99"),
    ],
)
def test_generation(capsys, tmp_path, model, option, value):
    arguments = ["--model", str(model), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    refused(capsys, generation, [*arguments, option, value], option, value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("--queries", "0"), ("--queries", "-5"), ("--seed", "-1"), ("--model", "/nowhere"), ("--device", "toaster")],
)
def test_retrieval(capsys, tmp_path, model, option, value):
    arguments = ["--model", str(model), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    refused(capsys, retrieval, [*arguments, option, value], value, *(() if option == "--model" else (option,)))


@pytest.mark.parametrize("command", [generation, retrieval, leakage])
def test_out_that_is_a_file(capsys, tmp_path, model, command):
    (tmp_path / "out").touch()
    options = [] if command is leakage else ["--model", str(model)]
    refused(capsys, command, [*options, "--data", str(tmp_path), "--out", str(tmp_path / "out")], "--out")


@pytest.mark.parametrize("split", ["test", "tset"])
def test_leakage_without_data(capsys, tmp_path, split):
    refused(capsys, leakage, ["--data", str(tmp_path), "--out", str(tmp_path), "--split", split], split)


@pytest.mark.parametrize(
    "config",
    [
        "[1]",
        "null",
        '"text"',
        "{",
        '{"images_per_arm": 0}',
        '{"queries": -1}',
        '{"encoder_steps": "many"}',
        '{"identities": 10}',
        '{"identities": 420, "splits": [419, 1, 0]}',
        '{"splits": 3}',
        '{"size": 8}',
        '{"colour": 1}',
    ],
)
def test_demo_sizes(capsys, tmp_path, config):
    refused(capsys, demo.main, ["--out", str(tmp_path / "run"), "--config", config], "--config")
    assert not (tmp_path / "run").exists()


def test_demo_limits_name_their_option(capsys, tmp_path):
    refused(capsys, demo.main, ["--out", str(tmp_path / "run"), "--data-seed", "-1"], "--data-seed")


def test_demo_folders(capsys, tmp_path):
    (tmp_path / "file").touch()
    refused(capsys, demo.main, ["--out", str(tmp_path / "file")], "--out")
    for content in ("{", "[]", '{"data": 3}', '{"data": {}}'):
        (tmp_path / "times.json").write_text(content)
        refused(capsys, demo.main, ["--out", str(tmp_path)], "times.json", "--out")
    refused(capsys, showcase.main, ["/nowhere"], "/nowhere", "eval.demo")


def test_networks_that_are_damaged_or_others(judge_exports, tmp_path):
    with pytest.raises(CheckpointError, match=r"^--judge: .*Judge .*config\.json .*'SecondRecognizer'"):
        load_model(Judge, judge_exports[1], "--judge")
    weights = next(judge_exports[0].glob("*.safetensors")).read_bytes()
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(weights[: len(weights) // 2])
    settings = json.loads((judge_exports[0] / "config.json").read_text())
    for content in (json.dumps(settings), json.dumps({"_class_name": "Judge"}), "{", "[]"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=rf"^--judge: {tmp_path} .*\bJudge\b"):
            load_model(Judge, tmp_path, "--judge")
    assert isinstance(load_model(SecondRecognizer, judge_exports[1], "--second-recognizer"), SecondRecognizer)
