"""Rows of local data sets of every kind, in order and from any start; what is missing or damaged is named."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faceclip.data.cells import RejectedRecord
from faceclip.data.mapping import DataConfig, cache_folder, data_at
from faceclip.data.rejects import RejectCounts
from faceclip.data.sources import check_own_layout, find_layout
from faceclip.errors import ConfigError, DataError, EmptyDatasetError, TooManyBadRecordsError
from faceclip.storage.hashes import content_hash
from tests.faceclip.data.rows import folder, open_rows, png


def table(count: int = 7) -> datasets.Dataset:
    images = [{"bytes": png(number), "path": None} for number in range(count)]
    columns = {"image": images, "caption": [f"text {n}" for n in range(count)], "identity": list(range(count))}
    kinds = {"image": datasets.Image(), "caption": datasets.Value("string"), "identity": datasets.Value("int32")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


@pytest.fixture(params=["parquet folder", "parquet file", "arrow", "arrow dict", "jsonl"])
def stored(request, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    if request.param == "parquet folder":
        (root / "data").mkdir()
        table().select(range(4)).to_parquet(root / "data" / "train-00000-of-00002.parquet")
        table().select(range(4, 7)).to_parquet(root / "data" / "train-00001-of-00002.parquet")
    elif request.param == "parquet file":
        root = root / "all.parquet"
        table().to_parquet(root)
    elif request.param == "arrow":
        table().save_to_disk(root)
    elif request.param == "arrow dict":
        datasets.DatasetDict({"train": table()}).save_to_disk(root)
    else:
        lines = [json.dumps({"image": f"{n}.png", "caption": f"text {n}", "identity": n}) for n in range(7)]
        root = root / "rows.jsonl"
        root.write_text("\n".join(lines))
    return root


def test_rows_in_order_from_any_start_and_undecoded(stored, tmp_path):
    source = open_rows(stored, tmp_path)
    rows = list(source.rows(0))
    assert [row["identity"] for row in rows] == list(range(7))
    assert [row["caption"] for row in source.rows(3)] == [f"text {n}" for n in range(3, 7)]
    image = rows[2]["image"]
    assert image == "2.png" if isinstance(image, str) else image["bytes"] == png(2)
    assert {"image", "caption", "identity"} <= set(source.columns)
    assert open_rows(stored, tmp_path).content_hash == source.content_hash


def test_a_stream_resumes_where_it_stood(stored, tmp_path):
    source = open_rows(stored, tmp_path)
    rows = source.rows(0)
    first = [next(rows)["identity"] for _ in range(5)]
    position = source.position()
    if position is None:  # arrow: any row can be reached
        assert source.count == 7
        return
    again = open_rows(stored, tmp_path)
    rest = again.rows(5, json.loads(json.dumps(position)))
    assert [*first, next(rest)["identity"]] == [0, 1, 2, 3, 4, 5]
    last = open_rows(stored, tmp_path).rows(6, again.position())
    assert [row["identity"] for row in last] == [6]
    skipping = open_rows(stored, tmp_path)
    assert next(skipping.rows(5))["identity"] == 5
    assert skipping.position() is None


def test_a_reading_begins_anew_after_one_that_resumed(stored, tmp_path):
    first = open_rows(stored, tmp_path)
    began = first.rows(0)
    for _ in range(5):
        next(began)
    source, position = open_rows(stored, tmp_path), first.position()
    for _ in range(2):
        assert [row["identity"] for row in source.rows(5, position)] == [5, 6]
        assert [row["identity"] for row in source.rows(0)] == list(range(7))
        assert [row["identity"] for row in source.rows(6)] == [6]
    again = source.rows(0)
    assert next(again)["identity"] == 0
    assert (source.position() is None) == (position is None)  # known again, though the last reading skipped


def test_a_split_that_is_not_there_is_named(stored, tmp_path):
    with pytest.raises(DataError, match=r"'validation', .*\btrain: .*data\.validation_share"):
        open_rows(stored, tmp_path, "validation")


def test_content_decides_the_hash(tmp_path):
    path = tmp_path / "a.parquet"
    table().to_parquet(path)
    first = open_rows(path, tmp_path).content_hash
    table(6).to_parquet(path)
    assert open_rows(path, tmp_path).content_hash != first


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"caption": ["x" * 50] * 2000, "identity": list(range(2000))}), path, compression=None)
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-40])
    with pytest.raises(DataError, match=r"/a\.parquet cannot be read .*damaged"):
        list(open_rows(path, tmp_path).rows(0))


def test_parquet_files_without_rows_or_with_other_columns_are_named(tmp_path):
    rows = pa.table({"caption": ["a", "b"], "identity": [1, 2]})
    cases = {
        "empty": ([rows.slice(0, 0)], EmptyDatasetError, r"empty/data/train-00000-of-00001\.parquet "),
        "nothing": ([pa.table({})], EmptyDatasetError, r"nothing/data/train-00000-of-00001\.parquet "),
        "one empty": ([rows, rows.slice(0, 0)], EmptyDatasetError, r"one empty/data/train-00001-of-00002\.parquet "),
        "lacking": (
            [rows.select(["caption"]), rows],
            DataError,
            r"train-00000-of-00002\.parquet .*'identity'.*train-00001-of-00002\.parquet",
        ),
        "other kind": (
            [rows, rows.set_column(0, "caption", pa.array([["a"], ["b"]]))],
            DataError,
            r"train-00001-of-00002\.parquet: .*'caption' .*train-00000-of-00002\.parquet",
        ),
    }
    for name, (tables, error, message) in cases.items():
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True)
        for number, part in enumerate(tables):
            pq.write_table(part, folder / f"train-{number:05d}-of-{len(tables):05d}.parquet")
        with pytest.raises(error, match=message):
            open_rows(folder.parent, tmp_path)
    with pytest.raises(EmptyDatasetError, match=r"empty/data/train-00000-of-00001\.parquet"):
        open_rows(tmp_path / "empty" / "data" / "train-00000-of-00001.parquet", tmp_path)


def test_damaged_archives_are_named(tmp_path):
    lines = gzip.compress(b'{"image": "a.png", "caption": "b"}\n' * 5000)
    zeros = lines[: len(lines) // 2] + bytes(len(lines) // 2)
    for name, data in (("a.tar", b"nothing like a tar" * 100), ("b.jsonl.gz", lines[:-30]), ("c.jsonl.gz", zeros)):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(data)
        with pytest.raises(DataError, match=f"/{name} "):
            list(open_rows(tmp_path / name, tmp_path, layout="files").rows(0))


def test_a_path_that_is_no_data(tmp_path):
    with pytest.raises(DataError, match=r"data.path=.*nowhere/at/all: .*owner/name"):
        find_layout(DataConfig(path=str(tmp_path / "nowhere" / "at" / "all")))
    assert find_layout(DataConfig(path="owner/name")) == "hub"
    with pytest.raises(ConfigError, match=r"^data=owner/name: .*data\.path=OWNER/NAME"):
        find_layout(data_at("owner/name"))
    with pytest.raises(ConfigError, match=r"^data: "):
        find_layout(data_at(""))
    assert find_layout(data_at(str(tmp_path))) == "image_folder"
    given = DataConfig(path="owner/name", train="all")
    assert data_at(given) is given


def test_settings_that_our_own_layout_does_not_read_are_rejected(tmp_path):
    check_own_layout(data_at(str(tmp_path)), set())
    limited = DataConfig(path=str(tmp_path), limit=3)
    check_own_layout(limited, {"limit"})
    with pytest.raises(ConfigError, match=rf"^data\.path={tmp_path} .*data\.limit"):
        check_own_layout(limited, set())


def test_where_features_are_kept(tmp_path):
    assert cache_folder(data_at(str(tmp_path)), "") == tmp_path / ".features"
    assert cache_folder(data_at(str(tmp_path)), "elsewhere") == Path("elsewhere")
    assert cache_folder(DataConfig(path="owner/name"), "") == Path("data-cache/owner--name")
    (tmp_path / "rows.parquet").touch()
    assert cache_folder(DataConfig(path=str(tmp_path / "rows.parquet")), "") == tmp_path / ".features"


def test_layouts_are_distinguished(tmp_path):
    root = folder(tmp_path / "f")
    (root / ".features").mkdir()
    (root / ".features" / "report.json").write_text("{}")
    assert find_layout(DataConfig(path=str(root))) == "image_folder"
    (root / "metadata.csv").write_text("file_name,caption\n")
    assert find_layout(DataConfig(path=str(root))) == "image_folder"
    table().to_parquet(root / "rows.parquet")  # whose rows may name the pictures
    assert find_layout(DataConfig(path=str(root))) == "files"
    assert find_layout(DataConfig(path=str(root), layout="image_folder")) == "image_folder"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "dataset.json").write_text("{}")
    assert find_layout(DataConfig(path=str(tmp_path / "own"))) == "portraits"


def test_an_entry_with_an_impossible_name_is_left_to_be_counted(tmp_path):
    root = folder(tmp_path / "f")
    names = ["ann/1.png", "null\0byte.png", "x" * 300 + ".png", "half\ud83d.png"]
    (root / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name}) for name in names))
    assert [row["file_name"] for row in open_rows(root, tmp_path).rows(0)] == names


def test_digests_are_remembered_by_size_and_time(tmp_path):
    path, memo = tmp_path / "a", tmp_path / "memo.json"
    path.write_text("one")
    first = content_hash([path], tmp_path, memo)
    stored = json.loads(memo.read_text())
    stored[str(path)][2] = "0" * 64  # were the file read again, this would not count
    memo.write_text(json.dumps(stored))
    assert content_hash([path], tmp_path, memo) != first
    path.write_text("longer")
    changed = content_hash([path], tmp_path, memo)
    path.write_text("one")
    assert content_hash([path], tmp_path, memo) == first != changed
    memo.write_text("{")
    with pytest.raises(DataError, match=r"/memo\.json "):
        content_hash([path], tmp_path, memo)


def test_rejected_rows_are_counted_and_fatal_above_a_share(tmp_path):
    counts = RejectCounts(rows=20)
    for number in range(7):
        counts.add(RejectedRecord("no_face" if number else "bad_box", f"row {number}"))
    assert counts.share == 7 / 20
    assert str(counts) == "7 of 20 rows unusable (35.0%): bad_box 1, no_face 6"
    report = tmp_path / "report.json"
    counts.check(0.35, report, "data", at_end=True)
    counts.check(0.1, report, "data", at_end=False)  # too few rows to judge before the end
    with pytest.raises(TooManyBadRecordsError, match=r"no_face 6; at most 10\.0% .*report\.json.*data\.max_bad_share"):
        counts.check(0.1, report, "data", at_end=True)
    many = RejectCounts(rows=500, counts={"no_face": 51}, examples={"no_face": []})
    with pytest.raises(TooManyBadRecordsError):
        many.check(0.1, tmp_path / "early.json", "data", at_end=False)
    stored = json.loads(report.read_text())
    assert stored["counts"] == {"bad_box": 1, "no_face": 6}
    assert stored["usable"] == 13
    assert stored["examples"]["no_face"] == [f"row {n}" for n in range(1, 6)]  # the first five
    merged = RejectCounts()
    merged.merge(counts.to_dict())
    merged.merge(counts.to_dict())
    assert (merged.rows, merged.counts["no_face"], len(merged.examples["no_face"])) == (40, 12, 5)
    assert len(counts.examples["no_face"]) == 5


def write_tar(path: Path, count: int = 5) -> list[int]:
    """A webdataset of pictures and texts; where every member ends."""
    ends = []
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            for name, data in ((f"{number}.png", png(number)), (f"{number}.txt", f"text {number}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
                ends.append(archive.offset)
    return ends


def test_a_tar_that_was_cut_is_named(tmp_path):
    path = tmp_path / "data" / "a.tar"
    path.parent.mkdir()
    ends = write_tar(path)
    whole = path.read_bytes()
    assert [row["txt"] for row in open_rows(path, tmp_path).rows(0)] == [f"text {n}" for n in range(5)]
    path.write_bytes(whole[: ends[-1]])  # some writers leave out the blocks that end a tar file
    assert len(list(open_rows(path, tmp_path).rows(0))) == 5
    for stop in (ends[3] + 100, ends[3] + 512, ends[2] - 512, ends[-1] - 513, 300):
        path.write_bytes(whole[:stop])
        with pytest.raises(DataError, match=r"/a\.tar is damaged or cut off "):
            open_rows(path.parent, tmp_path)
