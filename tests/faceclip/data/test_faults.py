"""Faults while a synthetic data set is written: a typed error, nothing half, and the same files after another try."""

import hashlib
import os
import resource
from pathlib import Path

import pytest

from faceclip.errors import ConfigError, DataError
from faceclip.people.__main__ import main
from faceclip.people.generate import generate
from faceclip.people.plan import Request
from faceclip.storage.locks import locked
from tests.killing import first_child_killed

REQUEST = Request(identities=3, images_per_identity=2, size=32, seed=5, splits=(1, 1, 1))


def hashes(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.glob("data/*"))}


def unfinished(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*.tmp")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    generate(directory, REQUEST, workers=1, quiet=True)
    return directory


@pytest.fixture
def small_files(whole):
    """The kernel refuses to write more than 4 kB to a file, as on a full disk. After `whole`: kernels are compiled."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(whole, tmp_path, small_files):
    with pytest.raises(DataError, match=rf"^{tmp_path} .*Errno 27"):
        generate(tmp_path, REQUEST, workers=1, quiet=True)
    assert not unfinished(tmp_path) and not (tmp_path / "dataset.json").exists() and not hashes(tmp_path)
    small_files()
    generate(tmp_path, REQUEST, workers=1, quiet=True)
    assert hashes(tmp_path) == hashes(whole)


def test_killed_worker(tmp_path):
    with first_child_killed(), pytest.raises(DataError, match=rf"{tmp_path} .*--workers"):
        generate(tmp_path, REQUEST, workers=2, quiet=True)
    assert not unfinished(tmp_path) and not (tmp_path / "dataset.json").exists()


def test_leftovers_of_a_killed_process_go_away(whole, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / ".lock").touch()  # the first thing that the process left
    (tmp_path / "data" / "train-00000-of-00001.99.tmp").write_bytes(b"PAR1 half")
    (tmp_path / ".README.md.99.tmp").write_text("half")
    generate(tmp_path, REQUEST, workers=1, quiet=True)
    assert not unfinished(tmp_path) and hashes(tmp_path) == hashes(whole)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_changed_byte_in_a_finished_shard_is_repaired(whole, tmp_path, where):
    generate(tmp_path, REQUEST, workers=1, quiet=True)
    before = (tmp_path / "dataset.json").read_bytes()
    shard = tmp_path / "data" / "test-00000-of-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[int(where * len(content))] ^= 1
    shard.write_bytes(content)
    generate(tmp_path, REQUEST, workers=1, quiet=True)
    assert hashes(tmp_path) == hashes(whole) and (tmp_path / "dataset.json").read_bytes() == before


def test_second_writer_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with locked(tmp_path / ".lock"), pytest.raises(DataError, match=f"{tmp_path} .*process {os.getpid()}"):
        generate(tmp_path, REQUEST, workers=1, quiet=True)
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_unreadable_request_is_named(tmp_path, content):
    (tmp_path / "request.json").write_text(content)
    with pytest.raises(DataError, match=r"/request\.json "):
        generate(tmp_path, REQUEST, workers=1, quiet=True)
    assert (tmp_path / "request.json").read_text() == content


def test_command_says_what_is_wrong_without_a_traceback(tmp_path, capfd):
    (tmp_path / "file").touch()
    assert main(["--out", str(tmp_path / "file"), "--identities", "3", "--workers", "1", "--quiet"]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith("error: ") and str(tmp_path / "file") in errors and "Traceback" not in errors


def test_requests_that_cannot_be():
    for wrong in ({"identities": 0}, {"images_per_identity": 0}, {"seed": -1}):
        settings = {"identities": 3, "images_per_identity": 2, "size": 32, "seed": 5, "splits": (1, 1, 1)}
        with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "-")):
            Request(**{**settings, **wrong})
