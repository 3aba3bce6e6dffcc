"""Arrays of a hand-made shard: exact decoding, resizing, caching, and every kind of damage."""

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faceclip.data.arrays import load_arrays
from faceclip.data.records import REGIONS, VOCABULARIES, features
from faceclip.errors import DataError, EmptyDatasetError
from tests.full_disk import largest_file

SIZE = 16


def png(picture: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_row(identity: int, index: int, **changes) -> dict:
    generator = np.random.default_rng([identity, index])
    caption = {
        "text": "A person with red hair.",
        "kind": "attributes",
        "phrases": [{"text": "red hair", "start": 14, "end": 22, "region": "hair", "attributes": ["hair_color"]}],
    }
    row = {
        "image": png(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)),
        "identity": identity,
        "index": index,
        "attributes": {name: values[-1] for name, values in VOCABULARIES.items()},
        "expression": [0.5, 0.25],
        "shape": [1.0, 2.0, 3.0],
        "pose": {"yaw": 10.0, "pitch": -5.0, "roll": 1.0},
        "camera": [1.0, 0.0, 0.0, 14.0],
        "light": [0.1] * 27,
        "landmarks_5": [[1.0, 2.0]] * 5,
        "landmarks_68": [[3.0, 4.0]] * 68,
        "regions": png(generator.integers(0, len(REGIONS), (SIZE, SIZE), dtype=np.uint8)),
        "shading": png(np.zeros((SIZE, SIZE, 3), np.uint8)),
        "captions": [caption] * 3,
    }
    return {**row, **changes}


def write(root: Path, rows: list[dict], *, name: str = "test-00000-of-00001") -> Path:
    path = root / "data" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=features().arrow_schema), path)
    return path


def caches(root: Path) -> list[Path]:
    """Everything in the cache folder but its lock file."""
    return sorted(path for path in root.glob(".arrays/*") if path.name != ".lock")


def test_stored_values_come_back(tmp_path):
    rows = [make_row(5, 0), make_row(5, 1), make_row(6, 0)]
    write(tmp_path, rows)
    arrays = load_arrays(tmp_path, "test")
    assert len(arrays) == 3 and arrays.size == SIZE
    assert arrays.identity.tolist() == [5, 5, 6] and arrays.index.tolist() == [0, 1, 0]
    first = np.array(Image.open(io.BytesIO(rows[0]["image"]["bytes"])))
    np.testing.assert_array_equal(arrays.images[0], first)
    np.testing.assert_array_equal(arrays.regions[0], np.array(Image.open(io.BytesIO(rows[0]["regions"]["bytes"]))))
    assert arrays.pose[0].tolist() == [10, -5, 1] and arrays.shape.shape == (3, 3)
    assert arrays.landmarks_5[0, 0].tolist() == [1, 2] and arrays.landmarks_68.shape == (3, 68, 2)
    assert arrays.attributes["glasses"].tolist() == [3, 3, 3]
    assert arrays.attribute_values("glasses").tolist() == ["sunglasses"] * 3
    assert arrays.captions[2][0].named == ("hair_color",)


def test_resizing_averages_areas_and_moves_landmarks(tmp_path):
    write(tmp_path, [make_row(0, 0)])
    full, half = load_arrays(tmp_path, "test"), load_arrays(tmp_path, "test", size=SIZE // 2)
    blocks = full.images[0].reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    assert np.abs(half.images[0] - blocks).max() <= 1
    # Pixel centers: (1 + .5) / 2 − .5 = .25 and (2 + .5) / 2 − .5 = .75.
    np.testing.assert_allclose(half.landmarks_5[0, 0], [0.25, 0.75])
    # Labels are never mixed: each is one of its block.
    blocks = full.regions[0].reshape(8, 2, 8, 2).transpose(0, 2, 1, 3).reshape(8, 8, 4)
    assert (half.regions[0][..., None] == blocks).any(axis=-1).all()


def test_cache_is_used_and_follows_the_content(tmp_path):
    path = write(tmp_path, [make_row(1, 0)])
    load_arrays(tmp_path, "test")
    (cache,) = caches(tmp_path)
    stamp = (cache / "00000.safetensors").stat().st_mtime_ns
    load_arrays(tmp_path, "test")
    assert (cache / "00000.safetensors").stat().st_mtime_ns == stamp
    path.unlink()
    write(tmp_path, [make_row(2, 0)])
    assert load_arrays(tmp_path, "test").identity.tolist() == [2]


def test_arrays_are_read_only(tmp_path):
    write(tmp_path, [make_row(1, 0)])
    arrays = load_arrays(tmp_path, "test")
    with pytest.raises(TypeError, match="item assignment"):
        arrays.images[0] = 0
    for values in (arrays.identity, arrays.pose, arrays.attributes["hat"]):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0


def test_a_killed_build_resumes_with_the_same_arrays(tmp_path, monkeypatch):
    rows = [make_row(1, number, captions=[make_row(1, 0)["captions"][0]] * (1 + number % 3)) for number in range(600)]
    for number in range(2):
        write(tmp_path, rows[number * 300 : (number + 1) * 300], name=f"test-{number:05d}-of-00002")
    read = []

    def decode(data, **formats):
        read.append(data)
        if len(read) == 3 * 400:  # in the second block of 256 rows
            raise KeyboardInterrupt
        return Image.open(data, **formats)

    with monkeypatch.context() as patch:
        patch.setattr("faceclip.data.encoded.Image", SimpleNamespace(open=decode))
        with pytest.raises(KeyboardInterrupt):
            load_arrays(tmp_path, "test", workers=1)
    (cache,) = caches(tmp_path)
    assert [path.name for path in sorted(cache.iterdir())] == ["00000.safetensors", "manifest.json"]
    stamp = (cache / "00000.safetensors").stat().st_mtime_ns
    arrays = load_arrays(tmp_path, "test")
    assert (cache / "00000.safetensors").stat().st_mtime_ns == stamp
    assert len(arrays) == 600 and arrays.index.tolist() == list(range(600))
    assert [len(row) for row in arrays.captions] == [1 + number % 3 for number in range(600)]
    for row in (0, 255, 256, 299, 300, 599):
        stored = np.array(Image.open(io.BytesIO(rows[row]["image"]["bytes"])))
        np.testing.assert_array_equal(arrays.images[row], stored)


def test_missing_data_say_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"python -m faceclip\.people"):
        load_arrays(tmp_path, "test")
    with pytest.raises(DataError, match="'tset'"):
        load_arrays(tmp_path, "tset")
    with pytest.raises(DataError, match=r"\bsize\b.* 0$"):
        load_arrays(tmp_path, "test", size=0)


def test_captions_that_changed_in_the_cache_are_named(tmp_path):
    write(tmp_path, [make_row(1, 0)])
    load_arrays(tmp_path, "test")
    (cache,) = caches(tmp_path)
    shard = cache / "00000.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'"text": "A person', b'"text"; "A person'))
    arrays = load_arrays(tmp_path, "test")
    with pytest.raises(DataError, match=r"captions .*\.arrays "):
        _ = arrays.captions


def test_incomplete_shards_are_counted(tmp_path):
    write(tmp_path, [make_row(1, 0)], name="test-00000-of-00002")
    with pytest.raises(DataError, match=r"data\b.*\b1 of 2 test\b"):
        load_arrays(tmp_path, "test")


def test_truncated_shard_is_named(tmp_path):
    path = write(tmp_path, [make_row(1, 0)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet"):
        load_arrays(tmp_path, "test")
    assert caches(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": {"bytes": b"no picture", "path": None}}, "identity 1, index 0, image "),
        ({"image": png(np.zeros((8, 16, 3), np.uint8))}, "identity 1, index 0, image .*16×8"),
        ({"shading": png(np.zeros((8, 8, 3), np.uint8))}, rf"identity 1, index 0: shading .*\b8 .*\b{SIZE}\b"),
        ({"landmarks_5": [[1.0, 2.0]] * 4}, r"landmarks_5 .*\(4, 2\)"),
        ({"attributes": {**make_row(0, 0)["attributes"], "hat": "crown"}}, "hat='crown'"),
        ({"regions": png(np.full((SIZE, SIZE), len(REGIONS), np.uint8))}, r"regions .*\b13\b.*\b12\b"),
        ({"light": [float("nan")] * 27}, "identity 1, index 0: light "),
        ({"pose": None}, "identity 1, index 0: pose "),
        (
            {"captions": [{"text": "Red hair.", "kind": "both", "phrases": None}]},
            "index 0, captions: .*TypeError",
        ),
        (
            {
                "captions": [
                    {
                        "text": "Red hair.",
                        "kind": "both",
                        "phrases": [{"text": "red", "start": 0, "end": 3, "region": "hair", "attributes": []}],
                    }
                ]
            },
            "captions: 'red' .*hair.* 0 .* 3 .*'Red hair.'",
        ),
    ],
)
def test_damaged_rows_are_named(tmp_path, changes, message):
    write(tmp_path, [make_row(1, 0, **changes)])
    with pytest.raises(DataError, match=message):
        load_arrays(tmp_path, "test")
    assert caches(tmp_path) == []  # nothing half is left


def test_missing_columns_and_empty_splits(tmp_path):
    path = write(tmp_path, [make_row(1, 0)])
    pq.write_table(pq.read_table(path).drop_columns(["shading"]), path)
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet .*\bshading$"):
        load_arrays(tmp_path, "test")
    write(tmp_path, [])
    with pytest.raises(EmptyDatasetError, match=r"data\b.*\btest$"):
        load_arrays(tmp_path, "test")


def test_one_changed_byte_anywhere_is_noticed(tmp_path):
    path = write(tmp_path, [make_row(1, 0), make_row(1, 1)])
    content = path.read_bytes()
    files = [{"path": f"data/{path.name}", "sha256": hashlib.sha256(content).hexdigest()}]
    (tmp_path / "dataset.json").write_text(json.dumps({"files": files}))
    assert len(load_arrays(tmp_path, "test")) == 2
    for position in range(0, len(content), 401):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet .*SHA-256 .*dataset\.json"):
            load_arrays(tmp_path, "test")
    path.write_bytes(content)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"/dataset\.json "):
        load_arrays(tmp_path, "test")


def test_text_that_is_no_utf8_is_a_corrupt_shard(tmp_path):
    path = write(tmp_path, [make_row(1, 0)])
    pq.write_table(pq.read_table(path), path, compression="none")
    content = path.read_bytes()
    assert b"A person with red hair." in content
    path.write_bytes(content.replace(b"A person with red hair.", b"A person with \xff\xff\xff hair."))
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet .*utf-8"):
        load_arrays(tmp_path, "test")


def test_full_disk_is_a_typed_error_and_leaves_nothing_half(tmp_path):
    write(tmp_path, [make_row(1, number) for number in range(8)])
    with largest_file(3000), pytest.raises(DataError, match=r"\.arrays/test-stored-.*Errno 27"):
        load_arrays(tmp_path, "test")
    assert not list(tmp_path.glob(".arrays/*/*.safetensors"))
    assert len(load_arrays(tmp_path, "test")) == 8


def test_damaged_cache_is_named(tmp_path):
    write(tmp_path, [make_row(1, 0)])
    load_arrays(tmp_path, "test")
    shard = caches(tmp_path)[0] / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"\.arrays/test-stored-.*00000\.safetensors is corrupt"):
        load_arrays(tmp_path, "test")
    shard.unlink()
    with pytest.raises(DataError, match=r"\.arrays/test-stored-.*00000\.safetensors cannot be read"):
        load_arrays(tmp_path, "test")


def test_a_data_folder_that_cannot_hold_a_cache_is_named(tmp_path):
    write(tmp_path, [make_row(1, 0)])
    (tmp_path / ".arrays").write_text("")
    with pytest.raises(DataError, match=r"1 portraits cannot be kept in .*\.arrays"):
        load_arrays(tmp_path, "test")
