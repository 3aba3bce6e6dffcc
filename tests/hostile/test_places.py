"""Places that a command must not write to, two processes in one place, and runs whose checkpoints are all damaged."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval.demo.__main__
import eval.leakage
import eval.retrieval.scale
import train_encoder.__main__
import train_generator.__main__
from faceclip.errors import CheckpointError, ConfigError, DataError
from faceclip.settings import parse_config
from faceclip.storage.locks import folders_released, hold_folder, locked, locked_cache
from faceclip.storage.places import check_place
from faceclip.training import Trainer, check_output
from tests.faceclip.training.test_trainer import Line, Numbers, config, weights
from train_encoder.config import EncoderConfig
from train_encoder.towers import recognizer

HOLDER = """
import sys, time
from pathlib import Path
from faceclip.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
HOLDER_OF_REPORT = """
import sys, time
from pathlib import Path
from faceclip.storage.locks import hold_folder
hold_folder(Path(sys.argv[1]), "out=")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of somebody else."""
    folder = tmp_path / "thesis"
    (folder / "chapters").mkdir(parents=True)
    (folder / "thesis.tex").write_text("mine")
    return folder


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "main",
    [train_encoder.__main__.main, train_generator.__main__.main, recognizer.main],
    ids=["stage1", "stage2", "tower"],
)
def test_runs_are_refused_among_other_files_and_at_the_root(main, foreign, tmp_path, capsys) -> None:
    before, root = content(foreign), sorted(os.listdir("/"))
    (tmp_path / "link").symlink_to("/")
    for out in (foreign, "/", tmp_path / "link", "/etc/.."):
        assert main([f"data={tmp_path}", *(["encoder=x"] if "generator" in main.__module__ else []), f"out={out}"]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: out={out}: ") and line.count("\n") == 1
    assert content(foreign) == before and sorted(os.listdir("/")) == root


@pytest.mark.parametrize(
    "name", ["run.lock", "log.jsonl", "checkpoints/step-00000004/x", "checkpoints/.step-00000004.9.tmp/x"]
)
def test_folders_of_earlier_and_killed_runs_are_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.odt").touch()
    with pytest.raises(ConfigError, match=r"^out=.*notes\.odt"):
        check_output(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    check_output(tmp_path)


def test_empty_folders_and_folders_with_only_a_log_are_free(tmp_path: Path) -> None:
    check_place(tmp_path / "new", "out=", ("mark",))
    check_place(tmp_path, "out=", ("mark",))
    (tmp_path / "nohup.out").touch()
    check_place(tmp_path, "out=", ("mark",))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (eval.demo.__main__.main, []),
        (eval.leakage.main, ["--data", "nowhere"]),
        (eval.retrieval.scale.main, ["--gallery", "100"]),
    ],
    ids=["demo", "leakage", "scale"],
)
def test_reports_are_refused_among_other_files(foreign: Path, command, words: list[str], capsys) -> None:
    before = content(foreign)
    assert command([*words, "--out", str(foreign)]) == 2
    assert f"--out {foreign}: holds" in capsys.readouterr().err and content(foreign) == before


@pytest.mark.parametrize("cache", ["foreign", "/"])
def test_caches_are_refused_among_other_files_and_at_the_root(foreign: Path, cache: str) -> None:
    folder = foreign if cache == "foreign" else Path(cache)
    before = content(foreign)
    with pytest.raises(ConfigError, match=rf"^cache={folder}: "), locked_cache(folder):
        pass
    assert content(foreign) == before
    with locked_cache(foreign / "cache") as writable:
        assert writable
    with locked_cache(foreign / "cache") as writable:  # which now is a cache
        assert writable


@pytest.mark.parametrize("words", [["data=/etc/passwd"], ["data.path=/etc/passwd"]])
def test_nothing_is_written_beside_a_single_file(words: list[str], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir("/etc"))
    config = parse_config(EncoderConfig, words)
    with pytest.raises(ConfigError, match=r"^data\.path=/etc/passwd: .*cache=DIR"):
        config.cache_path  # noqa: B018 - the property raises
    assert train_encoder.__main__.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(os.listdir("/etc")) == before and not list(tmp_path.iterdir())


def test_the_cache_of_a_folder_or_table(tmp_path: Path) -> None:
    (tmp_path / "people.CSV").touch()
    for data in (tmp_path, tmp_path / "people.CSV"):
        assert parse_config(EncoderConfig, [f"data={data}"]).cache_path == tmp_path / ".features"


def test_a_second_process_learns_who_holds_the_run(tmp_path: Path) -> None:
    Trainer(config(steps=4), Line(), Numbers(), tmp_path).fit()
    before = weights(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            who = f"process {holder.pid} on {socket.gethostname()}"
            with pytest.raises(CheckpointError, match=rf"{tmp_path} \({who}\)"):
                Trainer(config(steps=8), Line(), Numbers(), tmp_path).fit()
            with pytest.raises(DataError, match=who), locked(tmp_path / "run.lock", wait=False):
                pass
        finally:
            holder.kill()
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())
    assert Trainer(config(steps=8), Line(), Numbers(), tmp_path).fit().step == 8  # the lock died with its holder


def test_two_reports_do_not_mix_in_one_folder(tmp_path: Path, capsys) -> None:
    words = ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "report")]
    assert eval.leakage.main(words) == 2
    assert "nowhere" in capsys.readouterr().err and not list((tmp_path / "report").iterdir())
    command = [sys.executable, "-c", HOLDER_OF_REPORT, str(tmp_path / "report")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == "held\n"
            assert eval.leakage.main(words) == 2
            told = capsys.readouterr().err
            assert f"--out {tmp_path / 'report'}: another process ({holder.pid}) writes there" in told
        finally:
            holder.kill()
    with folders_released():  # the lock died with its holder, and a command that has ended holds nothing
        hold_folder(tmp_path / "report", "out=")


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew(tmp_path: Path) -> None:
    Trainer(config(steps=8), Line(), Numbers(), tmp_path).fit()
    before = weights(tmp_path)
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "state.safetensors").write_bytes(b"")
    kept = content(tmp_path)
    with pytest.warns(UserWarning, match="corrupt"), pytest.raises(CheckpointError) as raised:
        Trainer(config(steps=8), Line(), Numbers(), tmp_path).fit()
    assert all(word in str(raised.value) for word in ("step-00000004", "step-00000008", f"{tmp_path / 'checkpoints'}"))
    assert content(tmp_path) == kept
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())
