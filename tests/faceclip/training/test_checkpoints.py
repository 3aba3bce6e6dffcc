"""Checkpoints are complete or absent: damage, full disks, kills between steps; the data order is a function."""

import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from faceclip.errors import CheckpointError, EmptyDatasetError
from faceclip.storage.folders import remove_leftovers, write_atomically
from faceclip.training import MapSource
from faceclip.training.checkpoints import (
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from faceclip.training.optimization import rate_factor
from faceclip.training.sampler import OrderedSampler, fetch, sample_rng


def save(directory: Path, step: int, value: float = 1.0) -> Path:
    return save_checkpoint(directory, step, {"w": torch.full((3,), value)}, {"step": step}, keep=2)


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, float(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    tensors, facts = load_checkpoint(newest_checkpoint(tmp_path))
    assert facts == {"step": 3} and tensors["w"].tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(("keep", "left"), [(1, [750]), (2, [500, 750]), (3, [250, 500, 750])])
def test_the_checkpoint_just_written_stays(tmp_path: Path, keep: int, left: list[int]) -> None:
    """Step 1000 was damaged, the run went on from 500: what it saves at 750 is newer, whatever the numbers say."""
    for step in (250, 500, 1000):
        save_checkpoint(tmp_path, step, {"w": torch.zeros(1)}, {}, keep=3)
    (tmp_path / "step-1000-good").mkdir()  # a user's own copy
    target = save_checkpoint(tmp_path, 750, {"w": torch.zeros(1)}, {}, keep=keep, previous=500)
    assert newest_checkpoint(tmp_path) == target
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-" + f"{step:08d}" for step in left] + [
        "step-1000-good"
    ]


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    whole = save(tmp_path, 4)
    kept = [whole.name, f".step-00000009.{os.getppid()}.tmp", ".cache.tmp", "export"]
    for name in (
        *kept[1:3],
        f".step-00000009.{done.pid}.tmp",
        f".step-00000004.{done.pid}.old",
        f".step-00000008.{os.getpid()}.tmp",
    ):
        (tmp_path / name).mkdir()
    # Killed between the two renames that replace a folder: the old one is all there is.
    (tmp_path / f".export.{done.pid}.old").mkdir()
    (tmp_path / f".export.{done.pid}.old" / "weights").write_text("old")
    (tmp_path / f".export.{done.pid}.tmp").mkdir()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    assert (tmp_path / "export" / "weights").read_text() == "old"
    remove_leftovers(tmp_path / "none")


def test_a_corrupt_checkpoint_is_named_and_an_older_one_chosen(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    file = folder / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-00000002: state\.safetensors is corrupt"):
        assert newest_checkpoint(tmp_path).name == "step-00000001"
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(folder)


def test_a_folder_without_manifest_is_not_a_checkpoint(tmp_path: Path) -> None:
    (save(tmp_path, 5) / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="missing"):
        assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("content", ["[]", '{"sha256": 3}', '{"sha256": [1]}', "not JSON"])
def test_a_manifest_of_something_else_is_told(tmp_path: Path, content: str) -> None:
    (save(tmp_path, 5) / "manifest.json").write_text(content)
    with pytest.warns(UserWarning, match=r"manifest\.json is missing or unreadable"):
        assert newest_checkpoint(tmp_path) is None


def test_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    write_atomically(tmp_path / "export", lambda folder: (folder / "a").write_text("old"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="disk is full"):
        write_atomically(tmp_path / "export", fail)
    assert (tmp_path / "export" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_unfinished_temporary_folder_is_ignored(tmp_path: Path) -> None:
    save(tmp_path, 4)
    (tmp_path / ".step-00000009.123.tmp").mkdir()
    assert newest_checkpoint(tmp_path).name == "step-00000004"


def test_every_epoch_visits_each_sample_once_in_another_order() -> None:
    sampler = OrderedSampler(10, seed=3)
    epochs = [sampler.slots(start, 10) for start in (0, 10)]
    assert [sorted(index for index, _ in epoch) for epoch in epochs] == [list(range(10))] * 2
    assert [index for index, _ in epochs[0]] != [index for index, _ in epochs[1]]
    assert {epoch for _, epoch in epochs[1]} == {1}
    # The order does not depend on what was asked before.
    assert OrderedSampler(10, seed=3).slots(7, 6) == epochs[0][7:] + epochs[1][:3]
    assert OrderedSampler(10, seed=4).slots(0, 10) != epochs[0]


def test_draws_of_a_sample_do_not_depend_on_its_batch() -> None:
    class Noise(MapSource):
        def __len__(self) -> int:
            return 5

        def get(self, index: int, rng: np.random.Generator) -> dict:
            return {"x": rng.standard_normal(2), "name": str(index)}

    batch = fetch(Noise(), [(4, 0), (2, 1)], seed=9)
    assert batch["name"] == ["4", "2"]
    assert batch["x"][1].tolist() == sample_rng(9, 2, 1).standard_normal(2).tolist()
    assert batch["x"][1].tolist() == fetch(Noise(), [(2, 1)], seed=9)["x"][0].tolist()


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(EmptyDatasetError, match="no samples"):
        OrderedSampler(0, seed=0)


def test_rate_schedule_by_hand() -> None:
    options = {"steps": 11, "warmup": 2, "schedule": "cosine", "min_ratio": 0.1}
    values = [rate_factor(step, **options) for step in (0, 1, 2, 6, 10)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])
    assert rate_factor(9, **options | {"schedule": "constant"}) == 1.0
