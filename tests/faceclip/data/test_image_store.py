"""Pictures that a data set names by URL, found among local files."""

import hashlib
import io
import math
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faceclip.data.cells import RejectedRecord
from faceclip.data.image_store import ImageStore, clean_urls
from faceclip.errors import DataError

URL = "https://example.org/a/portrait%20one.jpg?w=3"


@pytest.mark.parametrize(
    "name",
    [
        hashlib.sha256(URL.encode()).hexdigest() + ".jpg",
        hashlib.md5(URL.encode()).hexdigest() + ".webp",
        f"{hashlib.sha256(URL.encode()).hexdigest()[:2]}/{hashlib.sha256(URL.encode()).hexdigest()}.png",
        "portrait one.jpg",
        "id7.jpeg",
    ],
)
def test_names_that_are_found(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    assert ImageStore(tmp_path).find(URL, "id7") == (str(path), 1.0)
    assert ImageStore(tmp_path).find(f"{URL}, some words", "id7") == (str(path), 1.0)


def test_a_name_from_the_data_cannot_leave_the_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    for key in ("../secret", "..", "/etc/passwd", "a\0b"):
        with pytest.raises(RejectedRecord) as caught:
            ImageStore(tmp_path / "in").find("http://h/..", key)
        assert caught.value.reason == "no_image"


@pytest.mark.parametrize("url", ["http://h/" + "x" * 300, "http://[x/a.jpg", "no url \0"])
def test_an_odd_name_or_address_is_one_missing_picture(tmp_path, url):
    for key in ("k", "y" * 300):
        with pytest.raises(RejectedRecord, match=rf"{re.escape(repr(url))} .*{tmp_path}") as caught:
            ImageStore(tmp_path).find(url, key)
        assert caught.value.reason == "no_image"
    (tmp_path / f"{hashlib.sha256(url.encode()).hexdigest()}.png").write_bytes(b"x")
    assert ImageStore(tmp_path).find(url, "y" * 300)[1] == 1.0


def img2dataset(root: Path) -> None:
    """One tar shard and one folder shard as img2dataset leaves them."""
    with tarfile.open(root / "00000.tar", "w") as archive:
        for key in ("000000000", "000000002"):
            for suffix, data in ((".jpg", f"picture {key}".encode()), (".json", b"{}")):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    rows = [
        ("http://a/0", "000000000", "success", 256, 1024),
        ("http://a/1", "000000001", "failed_to_download", 0, 0),
        ("http://a/2", "000000002", "success", 256, 256),
    ]
    names = ("url", "key", "status", "width", "original_width")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), root / "00000.parquet")
    (root / "00001").mkdir()
    (root / "00001" / "000010000.jpg").write_bytes(b"y")
    pq.write_table(pa.table({"url": ["http://b/0"], "key": ["000010000"]}), root / "00001.parquet")


def test_img2dataset_output(tmp_path):
    img2dataset(tmp_path)
    store = ImageStore(tmp_path)
    assert store.find("http://a/0", "k") == (b"picture 000000000", 0.25)
    assert store.find("http://a/2, words", "k") == (b"picture 000000002", 1.0)
    assert store.find("http://b/0", "k") == (str(tmp_path / "00001" / "000010000.jpg"), 1.0)
    with pytest.raises(RejectedRecord, match="'http://a/1'"):
        store.find("http://a/1", "k")


@pytest.mark.parametrize(
    ("sizes", "scale"),
    [
        ((256, 171, 1000, 667), 0.256),  # keep_ratio, the height rounded
        ((384, 256, 1500, 999), 0.256),  # the width rounded
        ((3, 1, 1000, 400), 0.003),
        ((256, 256, 1000, 667), math.nan),  # border, or center_crop
        ((256, 256, 257, 300), math.nan),
    ],
)
def test_boxes_fit_pictures_of_the_same_shape_only(tmp_path, sizes, scale):
    names = ("url", "key", "width", "height", "original_width", "original_height")
    cells = ("http://a/0", "000000000", *sizes)
    pq.write_table(pa.table({name: [cell] for name, cell in zip(names, cells, strict=True)}), tmp_path / "0.parquet")
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "000000000.jpg").write_bytes(b"x")
    found = ImageStore(tmp_path).find("http://a/0", "k")[1]
    assert found == pytest.approx(scale, nan_ok=True)


def test_damaged_shards_and_missing_folders_are_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.images=.*nowhere"):
        ImageStore(tmp_path / "nowhere")
    img2dataset(tmp_path)
    (tmp_path / "00000.tar").write_bytes(b"not a tar")
    with pytest.raises(DataError, match=r"/00000\.tar "):
        ImageStore(tmp_path).find("http://a/0", "k")
    (tmp_path / "00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"/00001\.parquet "):
        ImageStore(tmp_path)


def test_fingerprint_sees_new_and_changed_files(tmp_path):
    img2dataset(tmp_path)
    before = ImageStore(tmp_path).fingerprint()
    assert ImageStore(tmp_path).fingerprint() == before
    for name in (".features", "cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00000.safetensors").write_bytes(b"features")
    assert ImageStore(tmp_path, tmp_path / "cache").fingerprint() == before
    assert ImageStore(tmp_path).fingerprint() != before  # "cache" is then any folder of pictures
    before = ImageStore(tmp_path).fingerprint()
    (tmp_path / "new.jpg").write_bytes(b"z")
    assert ImageStore(tmp_path).fingerprint() != before


def test_urls_with_words_behind_them():
    assert clean_urls("http://a/b.jpg, UNKNOWN, words") == ["http://a/b.jpg, UNKNOWN, words", "http://a/b.jpg"]
    assert clean_urls("http://a/b.jpg") == ["http://a/b.jpg"]
