"""Rows and tables of strangers: paths that lead elsewhere, files that never end, tables of every kind."""

import csv
import io
import json
import os
import random
import socket
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faceclip.data.cells import RejectedRecord
from faceclip.data.image_store import ImageStore
from faceclip.data.mapping import DataConfig, RowMapping, data_at
from faceclip.data.photos import PhotosConfig
from faceclip.data.portrait_reader import PortraitReader
from faceclip.data.sources import open_source
from faceclip.errors import ConfigError, DataError
from faceclip.towers.placement import named_device


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def caller() -> Iterator[tuple[str, list]]:
    """The address of a server on this machine, and who called it."""
    calls: list = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                calls.append(address)
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", calls
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def place(tmp_path) -> Path:
    """A data folder with a picture and a zip file, beside a private folder with the same and a link from the data."""
    for name, first in (("data", 0), ("private", 10)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.png").write_bytes(png(first))
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr("b/c.png", png(first + 1))
            archive.writestr("../up.png", png(first + 2))
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "private" / "a.png")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "private")
    return tmp_path


def addresses(place: Path, host: str) -> list[str]:
    """Ways in which a row may try to reach a server or a file outside of its data."""
    data, private = place / "data", place / "private"
    own, inner = f"{data}/a.zip", f"{private}/a.png"
    schemes = [
        "http",
        "https",
        "ftp",
        "webdhfs",
        "webhdfs",
        "s3",
        "gs",
        "sftp",
        "smb",
        "github",
        "hf",
        "dask",
        "arrow_hdfs",
    ]
    wrappers = ["reference", "filecache", "simplecache", "blockcache", "dir", "memory"]
    chains = [f"{scheme}://{host}/x::{own}" for scheme in schemes]
    return [
        *chains,
        *(f"{scheme}://{host}/a.png" for scheme in schemes),
        *(f"zip://b/c.png::{scheme}://{host}/a.zip" for scheme in schemes),
        *(f"{scheme}://x::{own}" for scheme in wrappers),
        f"ftp://{host}/x::hf://datasets/owner/name@main/a.png",
        f"file://{inner}",
        f"file://{inner}::{data}/a",
        f"local://{inner}",
        f"filecache::http://{host}/a.png",
        f"simplecache::file://{inner}",
        f"zip://b/c.png::{data}/../private/a.zip",
        f"zip://b/c.png::{data}/linked/a.zip",
        f"zip://b/c.png::{private}/a.zip",
        f"zip://../up.png::{own}",
        f"zip:///b/c.png::{own}",
        f"zip://b/c.png::zip://b/c.png::{own}",
        f"zip://b/c.png::file://{own}",
        "hf://datasets/owner/name@main/a.png",
        "hf://datasets/other/name@main/a.png",
        "hf://owner/model/a.png",
        f"::{inner}",
        inner,
        "../private/a.png",
        "linked/a.png",
        "link.png",
        f"//{host}/share/a.png",
        f"\\\\{host}\\share\\a.png",
        "/proc/self/environ",
        "/dev/stdin",
        "a.png\0.jpg",
        "a.png/../../private/a.png",
    ]


def refused(reader: PortraitReader, mapping: RowMapping, image: object) -> str:
    """The reason for which a row is left out."""
    with pytest.raises(RejectedRecord) as caught:
        reader.locate(mapping.read({"image": image, "caption": "a man", "identity": "1"}, 0))
    assert str(caught.value) and len(str(caught.value)) < 5000
    return caught.value.reason


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The files that were opened since; by the interpreter's own audit."""
    names: list[str] = []
    active = [True]

    def hear(event: str, arguments: tuple) -> None:
        if active[0] and event == "open":
            names.append(str(arguments[0]))

    sys.addaudithook(hear)
    yield names
    active[0] = False


@pytest.mark.parametrize("hub", ["", "owner/faces"])
@pytest.mark.parametrize("wrap", [str, lambda text: {"path": text, "bytes": None}], ids=["text", "struct"])
def test_rows_reach_neither_servers_nor_files_elsewhere(place, caller, opened, wrap, hub):
    host, calls = caller
    config = DataConfig(path=str(place / "data"))
    reader = PortraitReader(config, folder=place / "data", crop_size=36, picture_size=32, hub=hub)
    mapping = RowMapping(config, "files", ("image", "caption", "identity"), "rows")
    del opened[:]
    for address in addresses(place, host):
        assert refused(reader, mapping, wrap(address)) == "no_image", address
    assert not calls
    assert not [name for name in opened if str(place) in name or name.startswith(("/proc/self/environ", "/dev/stdin"))]
    for name in ("a.png", f"{place}/data/a.png", f"zip://b/c.png::{place}/data/a.zip"):
        found, _ = reader.locate(mapping.read({"image": wrap(name), "caption": "a", "identity": "1"}, 0))
        assert (found if isinstance(found, bytes) else Path(found).read_bytes()) in (png(), png(1))
    assert str(place / "data" / "a.zip") in opened  # the watch works


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_addresses_never_leave_the_data(place, caller, count):
    host, calls = caller
    config = DataConfig(path=str(place / "data"))
    reader = PortraitReader(config, folder=place / "data", crop_size=36, picture_size=32)
    mapping = RowMapping(config, "files", ("image", "caption", "identity"), "rows")
    draw, known = random.Random(15), addresses(place, host)
    pieces = [
        "::",
        "://",
        "..",
        "/",
        "\\",
        "zip",
        "file",
        "%2e%2e",
        "\0",
        "~",
        "@",
        "a.png",
        str(place / "private"),
        "é",
    ]
    for _ in range(count):
        text = draw.choice(known)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(text) + 1)
            text = text[:at] + draw.choice(pieces) + text[at + draw.choice((0, 0, 1, 5)) :]
        try:
            found, _ = reader.locate(mapping.read({"image": text, "caption": "a", "identity": "1"}, 0))
        except RejectedRecord as rejected:
            assert rejected.reason in ("no_image", "unreadable_image"), text
        else:
            assert (found if isinstance(found, bytes) else Path(found).read_bytes()) in (png(), png(1)), text
    assert not calls


def test_keys_and_urls_stay_below_the_pictures(place):
    images = place / "data" / "pictures"
    (images / "00000").mkdir(parents=True)
    (place / "data" / "secret.jpg").write_bytes(png())
    (place / "data" / "..secret.jpg").write_bytes(png())
    (images / "link.jpg").symlink_to(place / "private" / "a.png")
    keys = ["../../secret", str(place / "data" / "secret"), "../../../private/a"]
    urls = [f"http://a/{number}" for number in range(len(keys))]
    pq.write_table(pa.table({"url": urls, "key": keys}), images / "00000.parquet")
    store = ImageStore(images)
    names = ["../secret.jpg", "..secret.jpg", "link.jpg", "link", str(place / "private" / "a.png")]
    for url, key in [*((url, "k") for url in urls), *(("", name) for name in names), ("http://a/..%2fsecret.jpg", "k")]:
        with pytest.raises(RejectedRecord) as caught:
            store.find(url, key)
        assert caught.value.reason == "no_image"


@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("key", ["data_files", "data_dir"])
def test_a_card_names_files_of_its_folder_alone(place, caller, tmp_path, card, key):
    host, calls = caller
    data = place / "data" / "tables"
    data.mkdir()
    for folder in (data, place / "private"):
        pq.write_table(pa.table({"image": ["a"], "caption": ["b"], "identity": [1]}), folder / "rows.parquet")
    for target in (f"http://{host}/a.parquet", "../../private/*.parquet", str(place / "private" / "rows.parquet")):
        text = f"configs:\n- config_name: default\n  {key}: '{target}'\n"
        (data / card).write_text(f"---\n{text}---\n" if card == "README.md" else text)
        with pytest.raises(DataError, match=rf"{card}: configs, {key} names"):
            open_source(DataConfig(path=str(data)), "train", tmp_path / "memo.json")
    assert not calls


def test_a_saved_data_set_names_files_of_its_folder_alone(place, tmp_path):
    for folder in ("data", "private"):
        datasets.Dataset.from_dict({"caption": [folder]}).save_to_disk(place / folder / "saved")
    state = place / "data" / "saved" / "state.json"
    told = json.loads(state.read_text())
    told["_data_files"][0]["filename"] = "../../private/saved/" + told["_data_files"][0]["filename"]
    state.write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"state\.json: _data_files names"):
        open_source(DataConfig(path=str(state.parent)), "train", tmp_path / "memo.json")


def test_pipes_devices_and_endless_files_are_counted(place):
    data = place / "data"
    os.mkfifo(data / "pipe.png")
    (data / "zero.png").symlink_to("/dev/zero")
    with (data / "endless.png").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    config = DataConfig(path=str(data))
    reader = PortraitReader(config, folder=data, crop_size=36, picture_size=32)
    for name, reason in {"pipe.png": "no_image", "zero.png": "no_image", "endless.png": "image_too_large"}.items():
        for layout, image in {"files": name, "image_folder": str(data / name)}.items():
            mapping = RowMapping(config, layout, ("image", "caption", "identity"), "rows")
            raw = mapping.read({"image": image, "caption": "a", "identity": "1"}, 0)
            with pytest.raises(RejectedRecord) as caught:
                reader.prepare(raw, *reader.locate(raw))
            assert caught.value.reason == reason


def test_captions_in_capitals_and_caption_files_are_read(tmp_path):
    folder = tmp_path / "data" / "ann"
    folder.mkdir(parents=True)
    for name, text in {"0.JPG": "0.TXT", "1.png": "1.caption", "2.PNG": "2.Caption", "3.png": "3.txt"}.items():
        (folder / name).write_bytes(png())
        (folder / text).write_text(f"text of {name}\n")
    (folder / "3.caption").write_text("another")
    rows = list(open_source(DataConfig(path=str(folder.parent)), "train", tmp_path / "memo.json").rows(0))
    assert [row["caption"] for row in rows] == [[f"text of {name}"] for name in ("0.JPG", "1.png", "2.PNG", "3.png")]


@pytest.mark.parametrize("form", ["tree", "metadata", "jsonl"])
def test_dead_links_are_counted_and_backslashes_are_read(tmp_path, form):
    root = tmp_path / "data"
    (root / "ann").mkdir(parents=True)
    (root / "ann" / "0.png").write_bytes(png())
    (root / "ann" / "1.png").symlink_to(root / "ann" / "gone.png")
    os.mkfifo(root / "ann" / "2.png")
    for number in range(3):
        (root / "ann" / f"{number}.txt").write_text("a man")
    lines = [
        {"file_name": rf"ann\{n}.png", "image": rf"ann\{n}.png", "caption": "a", "identity": "1"} for n in range(3)
    ]
    config = DataConfig(path=str(root))
    if form == "metadata":
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    elif form == "jsonl":
        (root / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
        config = DataConfig(path=str(root / "rows.jsonl"))
    source = open_source(config, "train", tmp_path / "memo.json")
    mapping = RowMapping(config, source.layout, source.columns, source.name)
    reader = PortraitReader(config, folder=source.folder, crop_size=36, picture_size=32)
    first, *others = (mapping.read(row, number) for number, row in enumerate(source.rows(0)))
    assert Path(reader.locate(first)[0]) == root / "ann" / "0.png" and len(others) == 2
    for raw in others:
        with pytest.raises(RejectedRecord) as caught:
            reader.locate(raw)
        assert caught.value.reason == "no_image"


@pytest.mark.parametrize("make", [data_at, lambda path: DataConfig(path=path), lambda path: DataConfig(images=path)])
@pytest.mark.parametrize(
    "path", ["x" * 300, "a/" * 3000, "nul\0l", "/proc", "/proc/self/fd", "/sys/kernel", "/dev/zero"]
)
def test_paths_that_can_be_no_data_are_named(make, path):
    with pytest.raises(ConfigError, match=r"^data(\.path|\.images)?=") as caught:
        make(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["passwd", "photo.jpg", "gen.log", "model.safetensors", "rows.pkl"])
def test_files_that_are_no_tables_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(png() if name == "photo.jpg" else b"root:x:0:0\n")
    for config in (data_at(str(tmp_path / name)), DataConfig(path=str(tmp_path / name))):
        with pytest.raises(DataError, match=rf"data\.path=.*{name}: not a table.*\.parquet"):
            open_source(config, "train", tmp_path / "memo.json")
    with pytest.raises(DataError, match=rf"{name} cannot be read"):
        source = open_source(DataConfig(path=str(tmp_path / name), layout="files"), "train", tmp_path / "memo.json")
        list(source.rows(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308, -1e-9])
def test_numbers_beyond_reason_are_named(value):
    with pytest.raises(ConfigError, match=r"data\.portrait"):
        DataConfig(portrait=value)
    with pytest.raises(ConfigError, match="reach"):
        PhotosConfig(reach=value)
    with pytest.raises(ConfigError, match="size"):
        PhotosConfig(size=10**12)


def test_a_device_that_computes_nothing_is_named():
    with pytest.raises(ConfigError, match=r"data\.device=meta"):
        named_device("meta")


@pytest.mark.parametrize(
    "name", ["rows.csv", "rows.tsv", "ROWS.CSV", "rows.json", "rows.jsonl", "folder.csv", "folder.CSV", "folder.tsv"]
)
def test_tables_of_text_are_read_and_names_stay_text(tmp_path, name):
    names = ["NA", "None", "null", "007", "nan", "1e5", "True", "Ann"]
    rows = [{"image": f"{number}.png", "caption": "a, b", "identity": who} for number, who in enumerate(names)]
    file = tmp_path / "data" / name
    file.parent.mkdir()
    if file.suffix.lower() in (".csv", ".tsv"):
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text(json.dumps(rows) if file.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    config = DataConfig(path=str(file.parent if name.startswith("folder") else file))
    source = open_source(config, "train", tmp_path / "memo.json")
    mapping = RowMapping(config, source.layout, source.columns, source.name)
    read = [mapping.read(row, number) for number, row in enumerate(source.rows(0))]
    assert [raw.person for raw in read] == names and {raw.captions for raw in read} == {("a, b",)}
    assert [row["identity"] for row in source.rows(3)] == names[3:]
    assert source.folder == file.parent


@pytest.mark.parametrize(
    "name", ["people.jsonl", "table.csv", "metadata.parquet", "metadata.json", "up/metadata.jsonl"]
)
def test_tables_beside_pictures_are_never_passed_over_in_silence(tmp_path, name):
    root = tmp_path / "data"
    pictures = root / "train" if name.startswith("up/") else root
    pictures.mkdir(parents=True)
    (pictures / "0.png").write_bytes(png())
    row = {"file_name": "0.png", "caption": "a man", "identity": "1"}
    file = root / name.removeprefix("up/")
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row]), file)
    else:
        file.write_text(json.dumps(row) if file.suffix != ".csv" else "file_name,caption,identity\n0.png,a man,1\n")
    with pytest.raises(DataError, match=rf"{file.name} would be passed over.*metadata\.jsonl.*data\.path="):
        open_source(DataConfig(path=str(root)), "train", tmp_path / "memo.json")
