"""The script for a GPU rehearses on a CPU: figures, resume, failures, and the table that it writes into the docs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts import PARTS, Part, Setting, fitting
from faceclip.errors import DataError
from faceclip.training import TrainerConfig
from train_encoder.config import EncoderConfig


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(device=torch.device("cpu"), small=True, work=tmp_path / "work")


@pytest.mark.parametrize("name", ["loss", "encoder", "unet", "bigg14", "faceclip"])
def test_a_part_gives_figures(setting, name):
    setting.work.mkdir()
    figures = PARTS[name].run(setting)
    assert figures and all(isinstance(value, str) or value > 0 for value in figures.values())
    assert list(setting.work.iterdir()) == []  # nothing large is left


def test_a_batch_that_does_not_fit_is_halved_with_twice_the_chunks():
    tried = []

    def run(config: EncoderConfig) -> dict:
        tried.append((config.trainer.batch_size, config.trainer.accumulate))
        if len(tried) < least:
            raise torch.OutOfMemoryError("no memory is left")
        return {"loss": 1.0}

    config, least = EncoderConfig(data="none", trainer=TrainerConfig(batch_size=4, accumulate=2)), 3
    assert fitting(config, run) == {"batch": "1 × 8 chunks", "loss": 1.0} and tried == [(4, 2), (2, 4), (1, 8)]
    least = 9
    with pytest.raises(torch.OutOfMemoryError):
        fitting(config, run)


def test_the_command_writes_each_part_and_goes_on_where_it_stopped(tmp_path, capsys):
    results = tmp_path / "results.json"
    words = ["run", "--device", "cpu", "--small", "--results", str(results), "--only", "loss"]
    assert gpu.main([*words, "--seconds", "5"]) == 1 and not results.exists()  # too little to begin anything
    assert gpu.main(words) == 0, capsys.readouterr()
    entry = json.loads(results.read_text())["loss"]
    assert entry["state"] == "done" and entry["device"] == "cpu" and entry["figures"]["sigmoid, block, ms"] > 0
    before = results.read_bytes()
    assert gpu.main(words) == 0 and results.read_bytes() == before  # nothing was run again


def test_a_part_that_fails_is_told_and_run_again_and_what_needs_it_waits(setting, tmp_path, monkeypatch, capsys):
    entries = iter([{"state": "failed", "error": "RuntimeError: no"}, {"state": "out of time"}, {"state": "done"}])
    about = {"device": "cpu", "small": True, "seconds": 1.0, "figures": {"ms": 2.0}}
    begun = []

    def run_part(name: str, setting: Setting, limit: float) -> dict:
        begun.append(name)
        return about | (next(entries) if name == "tiny" else {"state": "done"})

    monkeypatch.setattr(gpu, "run_part", run_part)
    at, names = tmp_path / "results.json", ["loss", "generator-tiny"]
    for _ in range(2):
        assert not gpu.run(setting, at, names, limit=60, seconds=600)
    assert "needs tiny" in capsys.readouterr().out and begun == ["loss", "tiny", "tiny"]
    (setting.work / "encoder").mkdir()  # what the part leaves for others
    assert gpu.run(setting, at, names, limit=60, seconds=600)
    assert begun == ["loss", "tiny", "tiny", "tiny", "generator-tiny"]
    (setting.work / "encoder").rmdir()  # the files are gone: on a new machine they are made again
    assert not gpu.is_done("tiny", json.loads(at.read_text()), setting)


def test_a_process_that_fails_or_takes_too_long_is_named(setting, monkeypatch):
    setting.work.mkdir()
    entry = gpu.run_part("generator-tiny", setting, 0.2)
    assert entry["state"] == "out of time"
    monkeypatch.setattr(gpu.sys, "executable", "/bin/false")
    entry = gpu.run_part("loss", setting, 60)
    assert entry["state"] == "failed" and "status 1" in entry["error"]


def test_the_table_says_what_ran_on_a_gpu_and_nothing_more():
    lines = gpu.table({}, {}).splitlines()
    assert len(lines) == 2 + len(PARTS) and all(line.endswith("| no | no |") for line in lines[2:])
    done = {"state": "done", "device": "NVIDIA H200", "small": False, "figures": {"call, s": 1.2345678}}
    small = done | {"device": "cpu", "small": True}
    found = gpu.table({"loss": done, "unet": done | {"state": "failed", "error": "a | b"}}, {"encoder": small})
    rows = {line.split("`")[1]: line for line in found.splitlines()[2:]}
    assert "NVIDIA H200: call, s 1.235 | no |" in rows["loss"] and "failed a / b" in rows["unet"]
    assert rows["encoder"].endswith("| no | yes |")
    # What is not in these files, which may be another machine's, stays as the page has it.
    kept = {line.split("`")[1]: line for line in gpu.table({}, {"unet": small}, found).splitlines()[2:]}
    assert kept["loss"] == rows["loss"] and kept["encoder"] == rows["encoder"] and kept["unet"].endswith(" yes |")
    # Figures of a CPU, or of small sizes, are not those of a GPU.
    assert "| no | no |" in gpu.table({"loss": small, "unet": done | {"small": True}}, {}).splitlines()[2]


def test_figures_of_a_gpu_stay_until_a_gpu_gives_others(setting, tmp_path, monkeypatch):
    done = {"state": "done", "device": "NVIDIA H200", "small": False, "figures": {"ms": 1.0}, "seconds": 1.0}
    at = tmp_path / "results.json"
    at.write_text(json.dumps({"loss": done}))
    monkeypatch.setattr(gpu, "run_part", lambda *_: done | {"device": "cpu", "small": True, "figures": {"ms": 2.0}})
    assert not gpu.run(setting, at, ["loss"], limit=60, seconds=600)
    assert json.loads(at.read_text())["loss"] == done
    assert gpu.kept(done, done | {"seconds": 2.0})["seconds"] == 2.0
    with pytest.raises(SystemExit):
        gpu.main(["run", "--device", "cpu"])


def test_a_stopped_command_leaves_no_part_behind(tmp_path):
    words = ["run", "--device", "cpu", "--small", "--results", str(tmp_path / "results.json"), "--only", "loss"]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", *words], cwd=gpu.ROOT)
    log = tmp_path / "rehearsal" / "loss.txt"
    for _ in range(600):
        if log.exists():
            break
        time.sleep(0.1)
    assert log.exists()  # the part has begun
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    parts = [Path(f"/proc/{number}/cmdline") for number in os.listdir("/proc") if number.isdigit()]
    assert not [path for path in parts if str(log.parent).encode() in read_or_nothing(path)]


def read_or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def test_the_page_has_a_row_for_every_part():
    text = gpu.DOCS.read_text()
    rows = text.split(gpu.BEGIN)[1].split(gpu.END)[0].strip().splitlines()
    assert [line.split("|")[1:3] for line in rows] == [line.split("|")[1:3] for line in gpu.table({}, {}).splitlines()]
    again = gpu.written(text, "\n".join(rows))
    assert again == text
    with pytest.raises(DataError, match=r"scaling\.md"):
        gpu.written(text.replace(gpu.END, ""), "")


def test_parts_need_only_earlier_ones():
    names = list(PARTS)
    for name, part in PARTS.items():
        assert isinstance(part, Part)
        assert all(names.index(need) < names.index(name) and PARTS[need].leaves for need in part.needs)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_everything_is_rehearsed(tmp_path):
    assert gpu.main(["run", "--device", "cpu", "--small", "--results", str(tmp_path / "results.json")]) == 0
