"""What a run may go on from: its own checkpoints, of the same model, in a folder without leftovers."""

import shutil
import subprocess
from pathlib import Path

import pytest
from torch import nn

from faceclip.errors import CheckpointError
from faceclip.training import Trainer
from faceclip.training.checkpoints import load_checkpoint, save_checkpoint
from tests.faceclip.training.test_trainer import Line, Numbers, config


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (directory / "checkpoints").iterdir())


def test_starting_anew_over_checkpoints_is_refused(tmp_path: Path) -> None:
    Trainer(config(steps=8), Line(), Numbers(), tmp_path).fit()
    log = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"step-00000008, .*trainer\.resume=false"):
        Trainer(config(steps=2, resume=False), Line(), Numbers(), tmp_path).fit()
    assert steps(tmp_path) == [4, 8] and (tmp_path / "log.jsonl").read_bytes() == log
    shutil.rmtree(tmp_path / "checkpoints")
    assert Trainer(config(steps=2, resume=False), Line(), Numbers(), tmp_path).fit().step == 2


def test_a_run_that_went_on_before_a_damaged_checkpoint_keeps_what_it_saves(tmp_path: Path) -> None:
    Trainer(config(steps=12), Line(), Numbers(), tmp_path).fit()
    assert steps(tmp_path) == [8, 12]
    (tmp_path / "checkpoints" / "step-00000012" / "state.json").unlink()
    with pytest.warns(UserWarning, match=r"step-00000012: state\.json "):
        result = Trainer(config(steps=10, keep_checkpoints=1), Line(), Numbers(), tmp_path).fit()
    assert result.checkpoint == tmp_path / "checkpoints" / "step-00000010" and steps(tmp_path) == [10]


@pytest.mark.parametrize("out", ["/proc/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_made_is_named(out: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^out={out}: "):
        Trainer(config(steps=1), Line(), Numbers(), Path(out)).fit()


def test_leftovers_of_killed_runs_are_removed_at_the_start(tmp_path: Path) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    for name in (f"checkpoints/.step-00000009.{done.pid}.tmp", f".export.{done.pid}.tmp"):
        (tmp_path / name).mkdir(parents=True)
    Trainer(config(steps=2), Line(), Numbers(), tmp_path).fit()
    assert not list(tmp_path.rglob(".*"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    Trainer(config(steps=4), Line(), Numbers(), tmp_path).fit()

    def smaller() -> Line:
        task = Line()
        del task.modules["net"][2:]  # its optimizer state would go to other parameters
        return task

    def larger() -> Line:
        task = Line()
        task.modules["more"] = nn.Linear(1, 1)
        return task

    def wider() -> Line:
        task = Line()
        task.modules["net"][1] = nn.BatchNorm1d(9)
        return task

    normalized = r"net\.1\.bias, net\.1\.running_mean, net\.1\.running_var, net\.1\.weight"
    more = r"more\.bias, more\.weight"
    for build, names in ((smaller, r"net\.3\.bias, net\.3\.weight"), (larger, more), (wider, normalized)):
        with pytest.raises(CheckpointError, match=rf"step-\d+: .*\({names}\)"):
            Trainer(config(), build(), Numbers(), tmp_path).fit()
    assert Trainer(config(), Line(), Numbers(), tmp_path).fit().step == 20


@pytest.mark.parametrize(
    ("before", "after", "words"), [(None, 0.9, "was null, now set"), (0.9, None, "was set, now null")]
)
def test_an_older_checkpoint_tells_by_its_tensors_whether_weights_were_averaged(
    tmp_path: Path, before: float | None, after: float | None, words: str
) -> None:
    checkpoint = Trainer(config(steps=4, ema_decay=before), Line(), Numbers(), tmp_path).fit().checkpoint
    tensors, facts = load_checkpoint(checkpoint)
    del facts["settings"]
    save_checkpoint(checkpoint.parent, 4, tensors, facts)
    with pytest.raises(CheckpointError, match=rf"step-00000004: trainer\.ema_decay {words}: "):
        Trainer(config(ema_decay=after), Line(), Numbers(), tmp_path).fit()
    assert Trainer(config(steps=6, ema_decay=before), Line(), Numbers(), tmp_path).fit().step == 6


@pytest.mark.parametrize(
    ("before", "after", "message"), [(None, 0.9, "was null, now 0.9"), (0.9, None, "was 0.9, now null")]
)
def test_averaging_begins_with_the_run(tmp_path: Path, before: float | None, after: float | None, message: str) -> None:
    Trainer(config(steps=4, ema_decay=before), Line(), Numbers(), tmp_path).fit()
    with pytest.raises(CheckpointError, match=rf"trainer\.ema_decay {message}"):
        Trainer(config(ema_decay=after), Line(), Numbers(), tmp_path).fit()
