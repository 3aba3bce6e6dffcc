"""Rows of local data sets of every kind, in order and from any start; what is missing or damaged is named."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faceclip.data.mapping import DataConfig, RejectedRecord, RowMapping, cache_folder, data_at
from faceclip.data.rejects import RejectCounts
from faceclip.data.sources import find_layout, open_source, own_folder
from faceclip.errors import ConfigError, DataError, EmptyDatasetError, TooManyBadRecordsError
from faceclip.storage.hashes import content_hash


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int = 7) -> datasets.Dataset:
    images = [{"bytes": png(number), "path": None} for number in range(count)]
    columns = {"image": images, "caption": [f"text {n}" for n in range(count)], "identity": list(range(count))}
    kinds = {"image": datasets.Image(), "caption": datasets.Value("string"), "identity": datasets.Value("int32")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def open_rows(path, tmp_path, split="train", **changes):
    return open_source(DataConfig(path=str(path), **changes), split, tmp_path / "memo" / "digests.json")


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


def test_a_command_that_reads_our_layout_alone_says_so(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    assert own_folder(data_at(str(tmp_path))) == tmp_path
    with pytest.raises(ConfigError, match=r"data\.limit"):
        own_folder(DataConfig(path=str(tmp_path), limit=3))
    for other in (DataConfig(path="owner/name"), DataConfig(path=str(tmp_path / "dataset.json"))):
        with pytest.raises(ConfigError, match=rf"^data\.path={other.path}: "):
            own_folder(other)


def test_where_features_are_kept(tmp_path):
    assert cache_folder(data_at(str(tmp_path)), "") == tmp_path / ".features"
    assert cache_folder(data_at(str(tmp_path)), "elsewhere") == Path("elsewhere")
    assert cache_folder(DataConfig(path="owner/name"), "") == Path("data-cache/owner--name")


def folder(root, splits=("",)):
    for split in splits:
        for person in ("ann", "bob"):
            for number in range(2):
                path = root / split / person / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(number))
                path.with_suffix(".txt").write_text(f"{person} {number}\n\nsecond line\n")
    return root


def test_an_image_folder(tmp_path):
    root = folder(tmp_path / "f")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_bytes(png(3))
    (root / "bob" / "1.txt").unlink()
    source = open_rows(root, tmp_path)
    rows = list(source.rows(0))
    assert [row["file_name"] for row in rows] == ["ann/0.png", "ann/1.png", "bob/0.png", "bob/1.png"]
    assert [row["identity"] for row in rows] == ["ann", "ann", "bob", "bob"]
    assert rows[0]["caption"] == ["ann 0", "", "second line"]
    assert rows[3]["caption"] == []
    before = source.content_hash
    (root / "bob" / "1.txt").write_text("new words")
    assert open_rows(root, tmp_path).content_hash != before


def test_links_to_folders_are_entered_and_circles_are_not(tmp_path):
    root, elsewhere = folder(tmp_path / "f"), folder(tmp_path / "store")
    (root / "cat").symlink_to(elsewhere / "ann", target_is_directory=True)
    (elsewhere / "ann" / "up").symlink_to(root, target_is_directory=True)
    (root / "above").symlink_to(tmp_path, target_is_directory=True)
    (root / "itself").symlink_to(root / "itself")
    names = [row["file_name"] for row in open_rows(root, tmp_path).rows(0)]
    assert names == ["ann/0.png", "ann/1.png", "bob/0.png", "bob/1.png", "cat/0.png", "cat/1.png"]


def test_pictures_that_nothing_decodes_and_captions_in_other_encodings_are_counted(tmp_path):
    root = folder(tmp_path / "f")
    (root / "ann" / "2.HEIC").write_bytes(b"phone")
    (root / "ann" / "1.heic").write_bytes(b"the original of 1.png")
    (root / "ann" / "0.txt").write_bytes("café".encode("latin-1"))
    (root / "ann" / "1.txt").write_bytes("\ufeffa man\n".encode())
    (root / "bob" / "0.txt").write_bytes("a man".encode("utf-16"))
    rows = list(open_rows(root, tmp_path).rows(0))
    assert [row["file_name"] for row in rows if row["identity"] == "ann"] == ["ann/0.png", "ann/1.png", "ann/2.HEIC"]
    read = RowMapping(DataConfig(path=str(root)), "image_folder", tuple(rows[0]), str(root))
    for number, person in ((0, "ann"), (3, "bob")):
        with pytest.raises(RejectedRecord, match=rf"{person}/0\.png.*'caption'.*UTF-8") as caught:
            read.read(rows[number], number)
        assert caught.value.reason == "not_utf8"
    assert read.read(rows[1], 1).captions == ("a man",)
    (root / "metadata.csv").write_bytes("\ufefffile_name,caption\nann/1.png,é\n".encode())
    assert [row["caption"] for row in open_rows(root, tmp_path).rows(0)] == ["é"]


def test_tables_beside_the_pictures_that_they_name_are_read(tmp_path):
    root = folder(tmp_path / "f")
    rows = pa.table({"image": ["ann/0.png", "bob/1.png"], "caption": ["a", "b"], "identity": [1, 2]})
    pq.write_table(rows, root / "rows.parquet")
    source = open_rows(root, tmp_path)
    assert set(source.columns) == {"image", "caption", "identity"}
    assert [row["image"] for row in source.rows(0)] == ["ann/0.png", "bob/1.png"]
    # However many pictures there are, and whatever the names of their folders say.
    (root / "ann").rename(root / "train")
    for number in range(5100):
        (root / "train" / f"{number}.jpg").touch()
    (root / "rows.parquet").rename(root / "train.parquet")
    pq.write_table(rows.slice(1), root / "validation.parquet")
    assert [len(list(open_rows(root, tmp_path, split).rows(0))) for split in ("train", "validation")] == [2, 1]
    (root / "README.md").write_text("---\nconfigs:\n- config_name: a\n  data_files: train.parquet\n---\n")
    assert len(list(open_rows(root, tmp_path).rows(0))) == 2


def test_tables_of_no_split_are_not_passed_over(tmp_path):
    rows = pa.table({"caption": ["a", "b"], "identity": [1, 2]})
    for name in ("train.parquet", "more.parquet"):
        pq.write_table(rows, tmp_path / name)
    with pytest.raises(DataError, match=r"more\.parquet and 0 .*train\.parquet.*README\.md"):
        open_rows(tmp_path, tmp_path)
    assert len(list(open_rows(tmp_path / "train.parquet", tmp_path).rows(0))) == 2
    (tmp_path / "shards").mkdir()
    (tmp_path / "more.parquet").rename(tmp_path / "shards" / "0.parquet")
    assert len(list(open_rows(tmp_path, tmp_path, images=str(tmp_path / "shards")).rows(0))) == 2
    (tmp_path / "shards" / "0.parquet").rename(tmp_path / "train-more.parquet")
    assert len(list(open_rows(tmp_path, tmp_path).rows(0))) == 4


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


def test_splits_of_an_image_folder(tmp_path):
    root = folder(tmp_path / "f", ("train", "validation"))
    rows = list(open_rows(root, tmp_path, "validation").rows(1))
    assert len(rows) == 3
    assert all("/validation/" in row["image"] for row in rows)
    with pytest.raises(DataError, match=r"'test'.*data\.validation.*data\.validation_share"):
        open_rows(root, tmp_path, "test")


def test_persons_for_validation_are_not_trained_on(tmp_path):
    root = folder(folder(tmp_path / "f"), ("held",))
    (root / "held" / "ann").rename(root / "held" / "cat")
    seen = {
        split: {row["identity"] for row in open_rows(root, tmp_path, split, validation="held").rows(0)}
        for split in ("train", "held")
    }
    assert seen == {"train": {"ann", "bob"}, "held": {"bob", "cat"}}


def test_an_image_folder_with_metadata(tmp_path):
    root = folder(tmp_path / "f")
    lines = [{"file_name": "ann/1.png", "text": "hello", "person": "A", "box": [0, 0, 5, 5]}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (row,) = open_rows(root, tmp_path).rows(0)
    assert (row["image"], row["text"], row["person"]) == (str(root / "ann" / "1.png"), "hello", "A")
    for bad, message in (
        ('{"file_name": "../../x.png"}', r"entry 1: '\.\./\.\./x\.png'"),
        ("{", r"metadata\.jsonl .*line 1"),
        ("{}", "entry 1: .*`file_name`"),
    ):
        (root / "metadata.jsonl").write_text(bad)
        with pytest.raises(DataError, match=message):
            open_rows(root, tmp_path)


def test_texts_of_metadata_are_read_whole(tmp_path):
    root = folder(tmp_path / "f")
    text = "one, \u2028two\u0085\x0cthree"
    (root / "metadata.csv").write_text(f'file_name,caption\nann/1.png,"{text}\nfour"\nann/0.png,plain\n')
    assert [row["caption"] for row in open_rows(root, tmp_path).rows(0)] == [f"{text}\nfour", "plain"]
    for bad, message in (
        ("ann/1.png,a man, old", r"metadata\.csv, entry 1: "),
        ('ann/1.png,"open', r"metadata\.csv .*UTF-8"),
    ):
        (root / "metadata.csv").write_text(f"file_name,caption\n{bad}\n")
        with pytest.raises(DataError, match=message):
            open_rows(root, tmp_path)
    line = json.dumps({"file_name": "ann/1.png", "caption": text}, ensure_ascii=False)
    (root / "metadata.jsonl").write_text(f"{line}\r\n\n")
    assert [row["caption"] for row in open_rows(root, tmp_path).rows(0)] == [text]


def test_an_entry_with_an_impossible_name_is_left_to_be_counted(tmp_path):
    root = folder(tmp_path / "f")
    names = ["ann/1.png", "null\0byte.png", "x" * 300 + ".png", "half\ud83d.png"]
    (root / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name}) for name in names))
    assert [row["file_name"] for row in open_rows(root, tmp_path).rows(0)] == names


def test_file_names_that_are_no_utf8(tmp_path):
    path = tmp_path / "f" / "a" / "\udcff.png"  # how Python shows the byte 0xff of a name
    path.parent.mkdir(parents=True)
    path.write_bytes(png(1))
    assert len(list(open_rows(tmp_path / "f", tmp_path).rows(0))) == 1


def test_an_empty_folder(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(EmptyDatasetError, match=r"/f .*data\.path$"):
        open_rows(tmp_path / "f", tmp_path)


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


def test_pictures_of_a_relative_folder_are_found(tmp_path, monkeypatch):
    folder(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    source = open_rows("photos", tmp_path)
    for row in source.rows(0):
        assert Path(row["image"]).is_absolute() and Path(row["image"]).is_file()
