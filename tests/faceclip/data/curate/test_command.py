"""A whole curation: what is kept, that thresholds change without measuring, that every backend and a killed run give
the same bytes, and what is refused."""

import json
import os
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faceclip.data.arrays import load_arrays
from faceclip.data.curate.command import curate, main
from faceclip.data.curate.config import CurateConfig, PairsConfig
from faceclip.data.curate.rules import KeepConfig
from faceclip.data.mapping import ColumnsConfig, DataConfig, RowMapping, kept_for_validation, text_hash
from faceclip.data.photos import main as photos_command
from faceclip.data.portrait_reader import PortraitReader
from faceclip.data.sources import open_source
from faceclip.errors import ConfigError, DataError
from tests.faceclip.data.curate.pictures import save, scene

CHEAP = ("size", "color", "exposure", "blur", "hash")
PLUGIN = '''
import os, signal
from pathlib import Path
import numpy as np
import pyarrow as pa
from faceclip.data.curate.measures import Measure
from faceclip.errors import BadLandmarksError

PLACE = Path(__file__).parent

def dying(picture):
    """The first process that measures a wide picture dies of it."""
    if picture.pixels.shape[1] > 200 and (PLACE / "deadly").exists():
        (PLACE / "deadly").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"mean": float(picture.pixels.mean())}

def bare(picture):
    return {"mean": 1.0, "nsfw": 0.5}

def faceless(picture):
    raise BadLandmarksError("these points are no face")

def unplugged(picture):
    raise OSError("the camera is gone")

def embedding(picture):
    """A vector that says how red, green and blue a picture is."""
    mean = picture.pixels.reshape(-1, 3).mean(axis=0)
    return {"embedding": (mean / np.linalg.norm(mean)).tolist()}

DYING = Measure(name="dying", version=1, columns={"mean": pa.float32()}, compute=dying)
BARE = Measure(name="bare", version=1, columns={"mean": pa.float32()}, compute=bare)
FACELESS = Measure(name="faceless", version=1, columns={"mean": pa.float32()}, compute=faceless)
UNPLUGGED = Measure(name="unplugged", version=1, columns={"mean": pa.float32()}, compute=unplugged)
EMBEDDING = Measure(name="embedding", version=1, columns={"embedding": pa.list_(pa.float32())}, compute=embedding)
'''


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Two people with three pictures each; one grey, one repeated as a smaller JPEG, one cut off, one with words."""
    root = tmp_path_factory.mktemp("curate") / "photos"
    for number in range(4):
        save(root / "ada" / f"{number}.png", scene(number))
    (root / "ada" / "1.txt").write_text("a woman\nof letters\n")
    save(root / "bo" / "4.png", scene(4, 260))
    save(root / "bo" / "grey.png", np.repeat(cv2.cvtColor(scene(5), cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2))
    save(root / "bo" / "again.jpg", cv2.resize(scene(2), (140, 140), interpolation=cv2.INTER_AREA), quality=60)
    (root / "bo" / "torn.png").write_bytes((root / "ada" / "0.png").read_bytes()[:900])
    return root


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_measures.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def config(photos: Path, out: Path, *, keep: dict | None = None, data: dict | None = None, **words) -> CurateConfig:
    return CurateConfig(
        data=DataConfig(path=str(photos), shard_rows=3, **(data or {})),
        out=str(out),
        measures=words.pop("measures", CHEAP),
        keep=KeepConfig(**(keep or {})),
        **words,
    )


def content(out: Path) -> dict[str, str]:
    """Hashes of every file but the report and the times; of the notes of a shard all but where the stream stood, which
    `datasets` says otherwise after it resumed."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in ("report.html", ".lock")]
    found = {}
    for path in files:
        data = path.read_bytes()
        if path.parent.name == "measures" and path.suffix == ".json" and "complete" not in path.name:
            data = json.dumps({name: value for name, value in json.loads(data).items() if name != "position"}).encode()
        if path.parent.name != "seconds":
            found[str(path.relative_to(out))] = sha256(data).hexdigest()
    return found


def kept_rows(out: Path) -> list[dict]:
    return [row for path in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def curated(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("curated") / "out"
    curate(config(photos, out, licence="CC0-1.0"))
    return out


def test_what_is_kept_is_read_as_data(curated, photos, tmp_path):
    data = DataConfig(path=str(curated))
    source = open_source(data, "train", tmp_path / "memo.json")
    rows = list(source.rows(0))
    mapping = RowMapping(data, source.layout, source.columns, source.name, captions_needed=False)
    records = [mapping.read(row, number) for number, row in enumerate(rows)]
    assert [record.key for record in records] == ["ada/0.png", "ada/1.png", "ada/2.png", "ada/3.png", "bo/4.png"]
    assert [record.person for record in records] == ["ada"] * 4 + ["bo"]
    assert records[1].captions == ("a woman", "of letters") and records[0].captions == ()
    assert [record.image for record in records] == [(photos / record.key).read_bytes() for record in records]


def test_every_row_has_a_reason_or_is_kept(curated):
    rows = [row for path in sorted((curated / "decisions").iterdir()) for row in pq.read_table(path).to_pylist()]
    found = {row["key"]: (row["reasons"], row["instead"]) for row in rows if not row["kept"]}
    assert found == {
        "bo/again.jpg": (["duplicate"], "train 2"),
        "bo/grey.png": (["grey", "toned"], None),
        "bo/torn.png": (["unmeasured"], None),
    }
    summary = json.loads((curated / "curation.json").read_text())
    assert summary["rows"] == {"train": 8} and summary["kept"] == {"train": 5}
    assert summary["unmeasured"] == {"unreadable_image": 1}


def test_report_and_card_say_what_was_dropped(curated):
    report, card = (curated / "report.html").read_text(), (curated / "README.md").read_text()
    for word in (
        "grey",
        "duplicate",
        "unreadable_image",
        "Overlaps",
        "ms of a core per picture",
        "data:image/jpeg;base64",
    ):
        assert word in report
    assert "CC0-1.0" in card and "| train | 8 | 5 |" in card and "| duplicate | 1 |" in card


def test_thresholds_change_without_measuring_again(curated, photos, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (curated / "measures").iterdir()}
    summary = curate(config(photos, curated, keep={"min_color": None, "min_tint": None, "top": 3}))
    assert summary["kept"] == {"train": 3} and summary["dropped"]["rank"] == 3
    assert {path: path.stat().st_mtime_ns for path in (curated / "measures").iterdir()} == before
    assert "bo/4.png" in {row["key"] for row in kept_rows(curated)}  # the one of the most pixels
    curate(config(photos, curated, licence="CC0-1.0"))
    other = tmp_path / "other"
    curate(config(photos, other, licence="CC0-1.0"))
    assert content(curated) == content(other)


@pytest.fixture(scope="module")
def tables(photos, tmp_path_factory) -> Path:
    """The same pictures, but the torn one, as parquet, which is read as a stream."""
    out = tmp_path_factory.mktemp("tables") / "out"
    curate(config(photos, out, keep=dict.fromkeys(("min_color", "min_tint", "duplicates"))))
    return out


@pytest.mark.parametrize("kind", ["photos", "tables"])
def test_a_worker_that_dies_and_a_run_that_goes_on_give_the_same_bytes(kind, plugin, tmp_path, request):
    photos, words = request.getfixturevalue(kind), {"plugins": ("own_measures:DYING",)}
    curate(config(photos, tmp_path / "whole", **words))
    (plugin / "deadly").touch()
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"data\.workers"):
        curate(config(photos, out, backend="processes", data={"workers": 1}, **words))
    assert not (plugin / "deadly").exists() and not (out / "curation.json").exists()
    first = (out / "measures" / "train-00000.json").stat().st_mtime_ns
    (out / "measures" / ".train-00001.parquet.tmp").write_bytes(b"half")  # as a killed process leaves it
    curate(config(photos, out, backend="processes", data={"workers": 1}, **words))
    assert content(out) == content(tmp_path / "whole")
    assert (out / "measures" / "train-00000.json").stat().st_mtime_ns == first


def interrupt(monkeypatch, words: CurateConfig, moved: int) -> None:
    """A curation that ends when so many of its folders have been moved to their places."""
    replace, seen = os.replace, []

    def stop(source, target) -> None:
        if Path(source).is_dir():
            if len(seen) == moved:
                raise KeyboardInterrupt
            seen.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            curate(words)
    assert len(seen) == moved


@pytest.mark.parametrize("moved", [0, 1])
def test_a_run_that_ends_while_its_folders_are_moved_goes_on(moved, curated, photos, tmp_path, monkeypatch):
    words = config(photos, tmp_path / "out", licence="CC0-1.0")
    interrupt(monkeypatch, words, moved)
    (partial,) = (tmp_path / "out" / ".partial").iterdir()
    (partial / "data").mkdir(exist_ok=True)
    (partial / "data" / ".train-00000.parquet.1-2.tmp").write_bytes(b"half")  # as a killed process leaves it
    curate(words)
    assert content(tmp_path / "out") == content(curated)


def test_a_killed_run_leaves_no_reasons_of_its_own_to_one_with_other_rules(photos, tmp_path, monkeypatch):
    one, other = ({"rules": (f"side>={side}",)} for side in (200, 201))  # both drop the same rows
    interrupt(monkeypatch, config(photos, tmp_path / "out", keep=one), 0)
    curate(config(photos, tmp_path / "out", keep=other))
    rows = [row for path in (tmp_path / "out" / "decisions").iterdir() for row in pq.read_table(path).to_pylist()]
    assert {reason for row in rows for reason in row["reasons"] if reason.startswith("side")} == {"side>=201"}


def test_thresholds_alone_read_no_row_again(tables, tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    words = {"pictures": "none", "thumbnails": 0}
    for file in (tables / "data").iterdir():
        (root / file.name).write_bytes(file.read_bytes())
    assert curate(config(root, out, **words))["kept"] == {"train": 5}
    before = content(out)
    for file in root.iterdir():
        times = file.stat()
        data = bytearray(file.read_bytes())
        data[4:2000] = bytes(1996)
        file.write_bytes(data)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert curate(config(root, out, keep={"min_side": 200}, **words))["kept"] == {"train": 1}
    curate(config(root, out, **words))
    assert content(out) == before
    with pytest.raises(DataError, match=str(root)):
        curate(config(root, out, **words | {"thumbnails": 1}))


def test_rows_that_changed_since_they_were_measured_are_an_error(tables, tmp_path):
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    (first, *_) = files = sorted((tables / "data").iterdir())
    whole = pa.concat_tables([pq.read_table(file) for file in files])
    pq.write_table(whole, root / first.name)
    curate(config(root, out))
    memo = json.loads((out / ".digests.json").read_text())
    for changed in (whole.slice(0, 5), whole.slice(0, 3), whole.take([1, 0, 2, 3, 4, 5, 6])):
        pq.write_table(changed, root / first.name)
        facts = (root / first.name).stat()
        for entry in memo.values():
            entry[:2] = [facts.st_size, facts.st_mtime_ns]  # a change that the digests do not see
        (out / ".digests.json").write_text(json.dumps(memo))
        with pytest.raises(DataError, match="other rows"):
            curate(config(root, out))


def test_a_plugin_that_computes_other_columns_is_named(photos, plugin, tmp_path):
    with pytest.raises(ConfigError, match="'bare'"):
        curate(config(photos, tmp_path / "out", plugins=("own_measures:BARE",)))


def test_faults_of_a_face_have_the_reasons_of_other_commands(photos, plugin, tmp_path):
    summary = curate(config(photos, tmp_path / "out", plugins=("own_measures:FACELESS",)))
    assert summary["unmeasured"] == {"bad_landmarks": 7, "unreadable_image": 1}


def test_only_a_folder_that_cannot_be_written_is_called_so(photos, plugin, tmp_path):
    with pytest.raises(OSError, match="camera"):
        curate(config(photos, tmp_path / "out", plugins=("own_measures:UNPLUGGED",)))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"{tmp_path}/file/out"):
        curate(config(photos, tmp_path / "file" / "out"))


def test_figures_that_cannot_be_read_are_named(tables, tmp_path, monkeypatch):
    out, opened = tmp_path / "out", os.open
    curate(config(tables, out))

    def refuse(path, *more, **options):
        if str(path).endswith("measures/train-00001.parquet"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *more, **options)

    monkeypatch.setattr(os, "open", refuse)  # permissions do not stop the superuser
    with pytest.raises(DataError, match=r"measures/train-00001\.parquet cannot be read .*Permission"):
        curate(config(tables, out))


@pytest.mark.slow  # a cluster takes some ten seconds to start
def test_ray_gives_the_same_bytes_though_a_worker_is_killed(photos, plugin, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", f"{plugin}:{Path(__file__).parents[4]}")
    words = {"plugins": ("own_measures:DYING",)}
    curate(config(photos, tmp_path / "whole", **words))
    (plugin / "deadly").touch()
    curate(config(photos, tmp_path / "out", backend="ray", data={"workers": 2}, **words))
    assert not (plugin / "deadly").exists()
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_pairs_show_one_person_and_not_one_photo(plugin, tmp_path):
    root = tmp_path / "photos"
    for person, tint in (("ada", (200, 40, 40)), ("bo", (40, 40, 200))):
        for number in range(3):
            shade = np.full((160, 160, 3), tint, np.uint8) // (number + 1) + scene(number) // 8
            save(root / person / f"{number}.png", shade)
    keep = dict.fromkeys(("min_luminance", "min_contrast", "min_sharpness", "duplicates"))
    curate(config(root, tmp_path / "out", keep=keep, plugins=("own_measures:EMBEDDING",)))
    pairs = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    window = json.loads((tmp_path / "out" / "curation.json").read_text())["pairs"]
    assert {pair["person"] for pair in pairs} <= {"ada", "bo"} and len(pairs) + window["below"] + window["above"] == 6
    assert pairs and all(window["low"] <= pair["cosine"] < window["high"] for pair in pairs)
    assert all((pair["first"] < 3) == (pair["second"] < 3) and pair["first"] < pair["second"] for pair in pairs)


def test_a_person_in_two_splits_is_one_person(plugin, tmp_path):
    root = tmp_path / "photos"
    for split in ("train", "validation"):
        for number in range(3):
            save(root / split / "ada" / f"{number}.png", scene(number + 3 * (split == "train")))
    words = {"splits": ("train", "validation"), "pairs": PairsConfig(per_person=2)}
    curate(config(root, tmp_path / "out", plugins=("own_measures:EMBEDDING",), **words))
    window = json.loads((tmp_path / "out" / "curation.json").read_text())["pairs"]
    pairs = pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist()
    assert window["low"] == -1 and len(pairs) + window["above"] == 4  # nobody else is there to find a bound by


def test_paths_name_the_files_of_the_source(photos, tmp_path):
    curate(config(photos, tmp_path / "out", pictures="paths"))
    rows = kept_rows(tmp_path / "out")
    assert rows[0]["image"] == {"bytes": None, "path": "ada/0.png"}
    data = DataConfig(path=str(tmp_path / "out"), images=str(photos))
    source = open_source(data, "train", tmp_path / "memo.json")
    mapping = RowMapping(data, source.layout, source.columns, source.name, captions_needed=False)
    reader = PortraitReader(data, folder=source.folder, crop_size=1, picture_size=1)
    found, _ = reader.locate(mapping.read(next(iter(source.rows(0))), 0))
    assert Path(str(found)) == (photos / "ada" / "0.png").resolve()


def test_tables_that_hold_their_pictures_are_curated_again(curated, tmp_path):
    summary = curate(config(curated, tmp_path / "out", keep={"min_side": 200}))
    assert [row["key"] for row in kept_rows(tmp_path / "out")] == ["bo/4.png"]
    assert summary["dropped"]["small"] == 4
    with pytest.raises(ConfigError, match="pictures=paths"):
        curate(config(curated, tmp_path / "paths", pictures="paths"))
    assert not (tmp_path / "paths" / "measures").exists()  # before anything is measured


def test_duplicates_are_found_across_splits(photos, tmp_path):
    root = tmp_path / "photos"
    for number in range(3):
        save(root / "train" / f"{number}.png", scene(number))
    save(root / "validation" / "a.jpg", scene(1), quality=80)
    save(root / "validation" / "b.png", scene(9))
    summary = curate(config(root, tmp_path / "out", splits=("train", "validation"), data={"identity": "none"}))
    assert summary["kept"] == {"train": 3, "validation": 1}
    assert {row["person"] for row in kept_rows(tmp_path / "out")} == {None}


def test_other_data_or_measures_in_one_folder_are_refused(curated, photos):
    for words in (
        {"measures": ("size",)},
        {"data": {"limit": 2}},
        {"data": {"turned": False}},
        {"data": {"detect_px": 256}},
        {"smallest_face": 20},
    ):
        with pytest.raises(ConfigError, match=rf"out={curated}"):
            curate(config(photos, curated, **words))


def test_a_changed_shard_is_noticed(photos, tmp_path):
    out = tmp_path / "out"
    curate(config(photos, out, measures=("size",)))
    shard = out / "measures" / "train-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train-00001\.parquet"):
        curate(config(photos, out, measures=("size",)))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["out={photos}/out"], "out="),
        (["out={tmp}/out", "measures=[beauty]"], "'beauty'"),
        (["out={tmp}/out", "measures=[size]", "keep.max_text=.5"], "keep.max_text"),
        (["out={tmp}/out", "measures=[size]", "keep.duplicates=2"], "keep.duplicates"),
        (["out={tmp}/out", "pairs.low=.5"], "pairs"),
        (["out={tmp}/out", "smallest_face=19"], "smallest_face"),
        (["out={tmp}/out", "smallest_face=50", "data.detector=insightface"], "smallest_face"),
        (["out={tmp}/out", "keep.min_face_side=35"], "keep.min_face_side"),
        (["out={tmp}/out", "measures=[size]", "splits=[test]"], "test"),
        ([], "out"),
    ],
)
def test_words_that_do_not_fit(words, named, photos, tmp_path, capsys):
    filled = [word.format(photos=photos, tmp=tmp_path) for word in words]
    assert main([f"data.path={photos}", *filled]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error:") and named in error
    assert not (tmp_path / "out" / "measures").exists()


def test_portraits_are_cut_from_what_is_kept(tiny_dataset, tmp_path):
    """Points of the source go on to the import of photos, which finds the same portraits as in the source."""
    arrays, root, lines = load_arrays(tiny_dataset, "train"), tmp_path / "photos", []
    names = [f"person {number}" for number in range(20)]
    aside = kept_for_validation(np.array([text_hash(name) for name in names]), 0.5)
    who = [names[np.flatnonzero(aside == validates)[0]] for validates in (True, False)] + [names[-1]]
    for number in range(6):
        name = f"{number}.png"
        save(root / name, np.asarray(arrays.images[number]))
        points = np.asarray(arrays.landmarks_5[number]).tolist()
        lines.append(
            {"file_name": name, "caption": f"portrait {number}", "points": points, "identity": who[number // 2]}
        )
    lines[5]["caption"] = "gone"
    save(root / "5.png", np.zeros((64, 64, 3), np.uint8))
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = {"columns": ColumnsConfig(landmarks="points")}
    keep = dict.fromkeys(("min_side", "max_dark", "min_sharpness", "duplicates"))
    curate(config(root, tmp_path / "out", data=data, keep=keep))
    assert [row["key"] for row in kept_rows(tmp_path / "out")] == [f"{number}.png" for number in range(5)]
    words = ["size=64", "min_side=32", "reach=1.6", "data.validation_share=0.5", "data.columns.landmarks=landmarks"]
    words += ["data.few_pictures=drop", f"data.path={tmp_path / 'out'}", f"out={tmp_path / 'portraits'}"]
    assert photos_command(words) == 0
    stored = [
        row for path in sorted((tmp_path / "portraits" / "data").iterdir()) for row in pq.read_table(path).to_pylist()
    ]
    captions = {row["key"]: row["captions"][0]["text"] for row in stored}
    assert captions == {f"{number}.png": f"portrait {number}" for number in range(4)}
