"""Files written whole or not at all, on a disk that is full after some bytes."""

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faceclip.errors import CheckpointError, ConfigError, DataError
from faceclip.storage.files import disk_errors, read_json, replacing, write_json, write_picture, write_text
from tests.full_disk import largest_file


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def test_a_picture_replaces_the_earlier_one_or_leaves_it(tmp_path):
    path = tmp_path / "new" / "a.png"
    write_picture(path, Image.new("RGB", (4, 4)))
    before = path.read_bytes()
    with largest_file(4000), pytest.raises(DataError, match=r"/a\.png .*Errno 27"):
        write_picture(path, noise())
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    write_picture(path, noise())
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(noise()))
    assert list(path.parent.iterdir()) == [path]


def test_an_error_within_the_block_leaves_the_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_outermost_file_is_named_and_other_errors_pass():
    out, part = Path("out"), Path("out/part")
    said = r"\bout \(\[Errno 28\]"
    with pytest.raises(CheckpointError, match=said) as caught, disk_errors(out, CheckpointError), disk_errors(part):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "part" not in str(caught.value)
    for error in (ConfigError("fit"), ValueError("fit")):
        with pytest.raises(type(error), match=r"^fit$"), disk_errors(out):
            raise error from OSError()


@pytest.mark.parametrize("alone", [False, True])
def test_a_text_replaces_the_earlier_one_or_leaves_it(tmp_path, alone):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old", alone=alone)
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800", alone=alone)
    with largest_file(100), pytest.raises(CheckpointError, match=r"a\.txt"):
        write_text(path, "new" * 1000, kind=CheckpointError, alone=alone)
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_the_only_writer_of_a_file_writes_over_what_a_killed_one_left(tmp_path):
    (tmp_path / ".a.json.tmp").write_text("half")
    write_json(tmp_path / "a.json", {"b": 1, "a": 2}, alone=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n "a": 2,\n "b": 1\n}\n'


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "facts.json"
    write_json(path, {"b": 1, "a": [2]})
    assert path.read_text() == '{\n "a": [\n  2\n ],\n "b": 1\n}\n' and read_json(path) == {"a": [2], "b": 1}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": [2], "b": 1}
    write_json(path, [1])
    assert [entry.name for entry in path.parent.iterdir()] == ["facts.json"]
    with pytest.raises(DataError, match=r"/facts\.json .*JSON"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"/facts\.json .*line 1 column 2"):
        read_json(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"/facts\.json .*Errno 21"):
        write_json(path, {})
    with pytest.raises(DataError, match=r"/facts\.json .*folder") as refusal:
        read_json(path, "delete it")
    assert "delete" not in str(refusal.value)  # what cannot be read now may be whole
    assert [entry.name for entry in path.parent.iterdir()] == ["facts.json"]
