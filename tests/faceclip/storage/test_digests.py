"""Hashes of folders: names, contents and places count, times do not; digests are remembered and never wrong."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from faceclip.storage.digests import content_hash, file_hash, read_json, write_json

from faceclip.errors import DataError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (root / "b.bin").write_bytes(b"second")
    (root / "sub" / "a.bin").write_bytes(b"first")
    return [root / "sub" / "a.bin", root / "b.bin"]


def expected(files: dict[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(name.encode() + b"\0" + hashlib.sha256(content).hexdigest().encode() + b"\n")
    return total.hexdigest()


def test_names_and_contents_in_order(files: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "data"
    right = expected({"b.bin": b"second", "sub/a.bin": b"first"})
    assert content_hash(files, root, tmp_path / "memo.json") == right
    assert content_hash(files[::-1], root, tmp_path / "other.json") == right
    assert content_hash(files[:1], root, tmp_path / "memo.json") == expected({"sub/a.bin": b"first"})
    # Golden: caches of earlier releases are found by it.
    assert right == "910b817a9638c10ab90bded9ff4989f53748cef8da9b36b66ff95f1b0ef8ac8e"


def test_every_file_counts_also_after_a_change_of_the_same_length(files: list[Path], tmp_path: Path) -> None:
    root, memo = tmp_path / "data", tmp_path / "memo.json"
    found = [content_hash(files, root, memo)]
    files[0].write_bytes(b"FIRST")
    os.utime(files[0], ns=(1, 1))
    found.append(content_hash(files, root, memo))
    files[0].write_bytes(b"FIRST and more")
    os.utime(files[0], ns=(1, 1))
    found.append(content_hash(files, root, memo))
    renamed = files[0].rename(files[0].with_name("c.bin"))
    found.append(content_hash([renamed, files[1]], root, memo))
    assert len(set(found)) == 4
    assert found[-1] == expected({"b.bin": b"second", "sub/c.bin": b"FIRST and more"})


def test_digests_are_remembered_by_size_and_time(files: list[Path], tmp_path: Path) -> None:
    root, memo = tmp_path / "data", tmp_path / "memo.json"
    before = content_hash(files, root, memo)
    stored = json.loads(memo.read_text())
    status = files[1].stat()
    assert stored[str(files[1])] == [status.st_size, status.st_mtime_ns, hashlib.sha256(b"second").hexdigest()]
    files[1].write_bytes(b"SECOND")
    os.utime(files[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_hash(files, root, memo) == before  # as git's index, which trusts both
    # What is remembered of other files stays.
    content_hash(files[:1], root, memo)
    assert json.loads(memo.read_text()).keys() == {str(file) for file in files}
    written = memo.stat().st_mtime_ns
    content_hash(files, root, memo)
    assert memo.stat().st_mtime_ns == written  # nothing new, nothing written


def test_unreadable_files_and_memos_are_named(files: list[Path], tmp_path: Path) -> None:
    memo = tmp_path / "memo.json"
    with pytest.raises(DataError, match=r"gone\.bin"):
        content_hash([*files, tmp_path / "gone.bin"], tmp_path, memo)
    memo.write_text("{")
    with pytest.raises(DataError, match=r"memo\.json"):
        content_hash(files, tmp_path, memo)


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    # SHA-256 of "abc", FIPS 180-2.
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "facts.json"
    write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}' and read_json(path) == {"a": [2], "b": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": [2], "b": 1}
    write_json(path, [1])
    assert [entry.name for entry in path.parent.iterdir()] == ["facts.json"]
    with pytest.raises(DataError, match=r"facts\.json.*no JSON object"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"facts\.json is corrupt"):
        read_json(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"cannot write .*facts\.json"):
        write_json(path, {})
    assert [entry.name for entry in path.parent.iterdir()] == ["facts.json"]
