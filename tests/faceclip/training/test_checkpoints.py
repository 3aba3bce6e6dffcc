"""Checkpoints are complete or absent: damage, full disks, kills between steps; the data order is a function."""

import errno
import json
import os
import stat
import subprocess
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from faceclip.errors import CheckpointError, ConfigError, EmptyDatasetError
from faceclip.storage.folders import remove_leftovers, sync_folder, verify, write_atomically
from faceclip.storage.locks import folders_released
from faceclip.training import MapSource
from faceclip.training.checkpoints import (
    add_facts,
    check_fit,
    check_same_start,
    check_unused,
    checkpoints,
    load_checkpoint,
    make_folder,
    newest_checkpoint,
    resumable_checkpoint,
    save_checkpoint,
    step_of,
    unshared,
)
from faceclip.training.optimization import rate_factor
from faceclip.training.sampler import OrderedSampler, fetch, sample_rng
from tests.full_disk import largest_file


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
    with pytest.warns(UserWarning, match=r"step-00000002: state\.safetensors "):
        assert newest_checkpoint(tmp_path).name == "step-00000001"
    with pytest.raises(CheckpointError, match=r"step-00000002: state\.safetensors "):
        load_checkpoint(folder)


def test_a_folder_without_manifest_is_not_a_checkpoint(tmp_path: Path) -> None:
    (save(tmp_path, 5) / "manifest.json").unlink()
    with pytest.warns(UserWarning, match=r"step-00000005: manifest\.json "):
        assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("content", ["[]", '{"sha256": 3}', '{"sha256": [1]}', "not JSON"])
def test_a_foreign_manifest_is_reported(tmp_path: Path, content: str) -> None:
    (save(tmp_path, 5) / "manifest.json").write_text(content)
    with pytest.warns(UserWarning, match=r"manifest\.json "):
        assert newest_checkpoint(tmp_path) is None


def test_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    write_atomically(tmp_path / "export", lambda folder: (folder / "a").write_text("old"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"/export .*Errno 28"):
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
    with pytest.raises(EmptyDatasetError, match=r"^length=0: "):
        OrderedSampler(0, seed=0)


def test_rate_schedule_by_hand() -> None:
    options = {"steps": 11, "warmup": 2, "schedule": "cosine", "min_ratio": 0.1}
    values = [rate_factor(step, **options) for step in (0, 1, 2, 6, 10)]
    assert values == pytest.approx([0.5, 1.0, 1.0, 0.55, 0.1])
    assert rate_factor(9, **options | {"schedule": "constant"}) == 1.0


def test_older_checkpoints_stay_until_the_new_one_is_in_place(tmp_path: Path) -> None:
    """The only good checkpoint must survive a save that fails, whatever `keep` says."""
    save_checkpoint(tmp_path, 1, {"w": torch.ones(3)}, {}, keep=1)
    with largest_file(2000), pytest.raises(CheckpointError, match="step-00000002"):
        save_checkpoint(tmp_path, 2, {"w": torch.ones(4000)}, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert verify(tmp_path / "step-00000001") is None
    save_checkpoint(tmp_path, 2, {"w": torch.ones(4000)}, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_step_saved_again_is_replaced(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        folder = save(tmp_path, 3, value)
    assert load_checkpoint(folder)[0]["w"].tolist() == [2.0] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_the_manifest_holds_the_hash_of_every_file(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"abc")
        (folder / "b").write_bytes(b"")

    write_atomically(tmp_path / "very" / "deep" / "export", write)
    stored = json.loads((tmp_path / "very" / "deep" / "export" / "manifest.json").read_text())
    assert stored == {
        "sha256": {
            "b": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sub/a": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        }
    }
    assert verify(tmp_path / "very" / "deep" / "export") is None
    (tmp_path / "very" / "deep" / "export" / "sub" / "a").write_bytes(b"abd")
    assert "sub/a" in verify(tmp_path / "very" / "deep" / "export")


def test_facts_are_added_to_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 7, {"w": torch.zeros(1)}, {"step": 7, "best": None})
    assert list(json.loads((folder / "state.json").read_text())) == ["best", "step"]  # in one order, whoever tells them
    add_facts(tmp_path, 7, {"best": 0.5, "validated": True})
    assert load_checkpoint(folder)[1] == {"step": 7, "best": 0.5, "validated": True}
    add_facts(tmp_path, 7, {"best": 0.75})
    assert load_checkpoint(folder)[1] == {"step": 7, "best": 0.75}
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "state.safetensors",
        "state.json",
        "later.json",
    }
    (folder / "later.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"later\.json"):
        load_checkpoint(folder)
    with largest_file(2000), pytest.raises(CheckpointError, match=r"later\.json.*Errno 27"):
        add_facts(tmp_path, 7, {"best": "long" * 1000})
    with pytest.raises(CheckpointError, match="step-00000008"):
        add_facts(tmp_path, 8, {"best": 0.75})
    assert not (tmp_path / "step-00000008").exists()


def test_names_and_shapes_must_fit(tmp_path: Path) -> None:
    ours = {"a": torch.zeros(2), "b": torch.zeros(3, 1)}
    check_fit(tmp_path, dict(ours), ours)
    for found, name in (
        (ours | {"c": torch.zeros(1)}, "c"),
        ({"a": ours["a"]}, "b"),
        (ours | {"a": torch.zeros(3)}, "a"),
        (ours | {"b": torch.zeros(1, 3)}, "b"),
    ):
        with pytest.raises(CheckpointError, match=rf"\({name}\)"):
            check_fit(tmp_path, found, ours)


def test_checkpoints_are_ordered_by_their_step(tmp_path: Path) -> None:
    for step in (100000000, 99999999, 5):
        save_checkpoint(tmp_path, step, {"w": torch.zeros(1)}, {}, keep=9, previous=10**9)
    (tmp_path / "step-00000006.txt").write_text("")
    (tmp_path / "step-00000007").write_text("a file")
    assert [step_of(folder) for folder in checkpoints(tmp_path)] == [5, 99999999, 100000000]
    assert newest_checkpoint(tmp_path).name == "step-100000000"
    assert newest_checkpoint(tmp_path / "none") is None


def test_loaded_tensors_are_copies(tmp_path: Path) -> None:
    """A tensor mapped from the file would change with it, and is aligned otherwise than an allocated one."""
    folder = save_checkpoint(tmp_path, 1, {"a": torch.ones(1, dtype=torch.uint8), "b": torch.arange(8.0)}, {})
    tensors, _ = load_checkpoint(folder)
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors.values())
    tensors["b"].add_(1)
    assert load_checkpoint(folder)[0]["b"].tolist() == list(range(8))


def test_leftovers_of_other_kinds_stay(tmp_path: Path) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    whole = save(tmp_path, 4)
    (tmp_path / f".{whole.name}.{done.pid}.old").mkdir()  # beside the new one: it was to be removed
    (tmp_path / f".notes.{done.pid}.tmp").write_text("a file of somebody else")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, f".notes.{done.pid}.tmp"}
    assert verify(whole) is None


def test_a_tensor_that_shares_its_storage_is_copied() -> None:
    whole = torch.arange(6.0)
    given = {"whole": whole, "view": whole[:], "part": torch.arange(8.0)[2:4], "own": torch.ones(2, dtype=torch.int64)}
    found = unshared(given)
    assert {name for name in given if found[name].data_ptr() != given[name].data_ptr()} == {"view", "part"}
    assert all(torch.equal(found[name], given[name]) for name in given)
    assert found["part"].untyped_storage().nbytes() == 8
    copies = unshared(given, copy=True)
    assert not {tensor.data_ptr() for tensor in copies.values()} & {tensor.data_ptr() for tensor in given.values()}


def test_a_run_resumes_from_the_newest_good_checkpoint_and_never_beside_damaged_ones(tmp_path: Path) -> None:
    assert resumable_checkpoint(tmp_path) is None
    check_unused(tmp_path)
    folders = [save(tmp_path, 3), save(tmp_path, 4)]
    assert resumable_checkpoint(tmp_path) == folders[1]
    with pytest.raises(CheckpointError, match="step-00000004"):
        check_unused(tmp_path)
    for folder in folders:
        (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"\(step-00000003, step-00000004\)"), pytest.warns(UserWarning):
        resumable_checkpoint(tmp_path)


def test_names_that_do_not_fit_are_listed_in_order_and_at_most_five(tmp_path: Path) -> None:
    found = {name: torch.zeros(1) for name in "ihgfedcba"}
    with pytest.raises(CheckpointError, match=r"\(a, b, c, d, e\)"):
        check_fit(tmp_path, found, {})


def test_the_output_folder_is_made_and_held(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    make_folder(folder)
    make_folder(folder)  # as by a run that resumes
    with folders_released():
        make_folder(folder, marks=("mark",))
        locks = Path("/proc/locks").read_text()
        assert f":{folder.stat().st_ino} " in locks
        (folder / "notes.txt").write_text("of somebody else")
        with pytest.raises(ConfigError, match=r"^--to .*notes\.txt"):
            make_folder(folder, "--to ", marks=("mark",))
        make_folder(folder)
    assert f":{folder.stat().st_ino} " not in Path("/proc/locks").read_text()


def test_folders_are_on_the_disk_before_they_get_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what a killed process with our number left is no part of it, and no file stays open."""
    order: list[str] = []
    sync, rename = os.fsync, os.rename

    def noted_sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert stat.S_ISDIR(os.fstat(descriptor).st_mode) or path.stat().st_size
        order.append(str(path.relative_to(tmp_path)))
        sync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        order.append(f"{Path(source).name} → {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", noted_rename)
    temporary = tmp_path / f".export.{os.getpid()}.tmp"
    temporary.mkdir()
    (temporary / "old").write_text("a leftover")

    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        for name in ("z", "y", "sub/x", "c", "b", "a"):
            (folder / name).write_text(name)

    names = ["a", "b", "c", "sub/x", "y", "z"]
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        write_atomically(tmp_path / "export", write)
    assert len(os.listdir("/proc/self/fd")) == opened
    assert list(json.loads((tmp_path / "export" / "manifest.json").read_text())["sha256"]) == names
    synced = [f"{temporary.name}/{name}" for name in [*names, "manifest.json", "sub"]] + [temporary.name]
    aside = f".export.{os.getpid()}.old"
    assert order == [
        *(*synced, f"{temporary.name} → export", "."),
        *(*synced, f"export → {aside}", f"{temporary.name} → export", "."),
    ]
    sync_folder(tmp_path / "export")
    assert order[-1] == "export" and {path.name for path in tmp_path.iterdir()} == {"export"}


def _agreed(rank: int, meeting: str, seen: list[int | None], device: torch.device) -> bool:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=len(seen), timeout=limit)
    step = seen[rank]
    try:
        check_same_start(Path("run"), None if step is None else Path(f"step-{step:08d}"), device)
    except CheckpointError as error:
        return not str(error).startswith("run: ")
    return True


@pytest.mark.parametrize(("seen", "agreed"), [([None, 1], False), ([2, 1], False), ([None, None], True)])
def test_ranks_that_see_different_checkpoints_do_not_start(tmp_path: Path, seen: list, agreed: bool) -> None:
    with get_context("fork").Pool(2) as pool:
        calls = [(rank, str(tmp_path / "meeting"), seen, torch.device("cpu")) for rank in range(2)]
        assert pool.starmap_async(_agreed, calls, chunksize=1).get(timeout=120) == [agreed] * 2
    check_same_start(tmp_path, None if seen[1] is None else Path("step-00000001"), torch.device("cpu"))  # one process
