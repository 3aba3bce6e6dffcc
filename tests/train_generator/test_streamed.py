"""Stage 2 on photographs as they lie in tables: shapes, places, resume, and what is refused."""

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faceclip.data.arrays import load_arrays
from faceclip.errors import DataError
from faceclip.faces.align import align_face
from faceclip.storage.shards import ShardFolder
from faceclip.training import parse_config
from tests.stages import run
from train_generator.__main__ import main
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.features import build, load_features
from train_generator.features import main as build_features
from train_generator.loading import build_pipeline
from train_generator.reference_features import ReferenceFeatures
from train_generator.streamed import build as building

MARGINS = ((0, 0), (40, 0), (0, 40))  # px left and above of a render, by its number
LIGHTS = (0, 90, 200)  # grey of the margin


def photo(portrait: np.ndarray, number: int) -> tuple[bytes, np.ndarray]:
    """A JPEG in which the portrait stands at the right or lower end of a wider or taller picture, and its shift."""
    across, down = MARGINS[number % 3]
    side = portrait.shape[0]
    canvas = np.full((side + down, side + across, 3), LIGHTS[number % 3], np.uint8)
    canvas[down:, across:] = portrait
    buffer = io.BytesIO()
    Image.fromarray(canvas).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue(), np.array([across, down])


@pytest.fixture(scope="module")
def table(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables with pictures of three shapes, one damaged picture and one person who has a single one."""
    folder = tmp_path_factory.mktemp("table")
    for split, count in (("train", 16), ("validation", 8)):
        arrays, rows = load_arrays(tiny_dataset, split), []
        for i in range(count):
            data, shift = photo(np.asarray(arrays.images[i]), i)
            rows.append(
                {
                    "image": b"damaged" if split == "train" and i == 5 else data,
                    "caption": arrays.captions[i][0].text,
                    "points": (np.asarray(arrays.landmarks_5[i]) + shift).tolist(),
                    "identity": f"{split} alone" if i == 3 else f"{split} {arrays.identity[i]}",
                }
            )
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-0.parquet")
    return folder


@pytest.fixture(scope="module")
def words(arguments, table) -> list[str]:
    kept = [word for word in arguments if not word.startswith(("data=", "cache="))]
    return [
        *kept,
        f"data.path={table}",
        "data.columns.landmarks=points",
        "data.shard_rows=6",
        "data.batch_size=4",
        "photos.frame=whole",
        "photos.min_side=32",
        "loss.alignment=0",
    ]


def features(words: list[str], split: str = "train") -> ReferenceFeatures:
    config = parse_config(GeneratorConfig, words, presets=PRESETS)
    return load_features(config, build_pipeline(config), split)


@pytest.fixture(scope="module")
def built(words, tmp_path_factory) -> Path:
    cache = tmp_path_factory.mktemp("built")
    status, output = run(build_features, *words, f"cache={cache}")
    assert status == 0, output
    assert "train: 15 pictures of 5 persons in 3 shapes" in output
    assert "1 of 16" in output and "unreadable_image" in output
    return cache


def shards(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*.safetensors"))}


def test_frames_know_where_their_face_is(words, built, tiny_dataset, table):
    found, truth = features([*words, f"cache={built}"]), load_arrays(tiny_dataset, "train")
    arrays = found.arrays
    assert arrays.images is None and not list(table.rglob(".arrays"))
    kept = [row for row in range(16) if row != 5]
    shapes = {arrays.shape(row) for row in range(15)}
    assert len(shapes) == 3 and (64, 64) in shapes
    for row in range(6):
        number, (height, width) = kept[row], arrays.shape(row)
        across, down = MARGINS[number % 3]
        assert found.time_ids(row).tolist()[:2] == [64 + down, 64 + across]
        assert found.time_ids(row).tolist()[4:] == [height, width]
        assert found.latents[row].shape == (4, height // 4, width // 4)
        shading = np.asarray(arrays.shading[row])
        assert shading.shape == (height, width, 3)
        # The map lies on the face: the nose is drawn, and the empty margin is not.
        x, y = arrays.landmarks_5[row][2].round().astype(int)
        assert shading[y, x].min() > 0
        points = arrays.landmarks_5[row]
        middle = np.argwhere(shading.any(axis=-1)).mean(axis=0)[::-1]
        assert np.abs(middle - points.mean(axis=0)).max() < np.ptp(points, axis=0).max()
        assert [caption.text for caption in arrays.captions[row]] == [truth.captions[number][0].text]
    assert len({arrays.names[row] for row in range(15)}) == 5


def test_references_are_cut_as_the_pipeline_cuts_them(words, built, table):
    config = parse_config(GeneratorConfig, [*words, f"cache={built}"], presets=PRESETS)
    pipeline = build_pipeline(config)
    found = load_features(config, pipeline, "train")
    row = pq.read_table(table / "train-0.parquet").to_pylist()[1]
    image = np.asarray(Image.open(io.BytesIO(row["image"])))
    crop = align_face(image, np.array(row["points"]))
    expected = building.Networks(
        encoder=pipeline.joint_encoder, image_tower=pipeline.image_encoder, vae=Path(), factor=4, fitter=""
    ).references([crop])
    np.testing.assert_allclose(found.identity[1], expected["identity"][0], atol=1e-5)


@pytest.mark.parametrize("broken", [4, 7])
def test_an_interrupted_pass_resumes_to_the_same_bytes_with_other_workers(words, built, tmp_path, monkeypatch, broken):
    written, append = [], ShardFolder.append

    def breaks(self, *arguments, **facts):
        if len(written) == broken:
            raise DataError("stopped by the test")
        written.append(self.folder)
        append(self, *arguments, **facts)

    monkeypatch.setattr(ShardFolder, "append", breaks)
    again = [*words, f"cache={tmp_path}"]
    assert run(build_features, *again)[0] == 2
    monkeypatch.undo()
    status, output = run(build_features, *again, "data.workers=3")
    assert status == 0, output
    assert shards(tmp_path) == shards(built)


def test_another_autoencoder_draws_no_map_again(words, built, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    shutil.copytree(built, cache)
    for folder in cache.glob("*-latents-*"):
        shutil.rmtree(folder)
    monkeypatch.setattr(building, "frame_maps", lambda *_: pytest.fail("maps were there"))
    build(parse_config(GeneratorConfig, [*words, f"cache={cache}"], presets=PRESETS))
    assert shards(cache) == shards(built)


def test_training_resumes_and_batches_have_one_shape(words, built, tmp_path, capsys):
    again = [*words, f"cache={built}", "trainer.device=cpu", "validation_pictures=2"]
    status, output = run(main, *again, f"out={tmp_path / 'whole'}", "trainer.steps=3")
    assert status == 0, output
    assert "1 persons have a single picture" in output
    for steps in (1, 3):
        status, output = run(main, *again, f"out={tmp_path / 'halves'}", f"trainer.steps={steps}")
        assert status == 0, output
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "export").rglob("*.safetensors")]
    assert len(names) > 2
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()


def test_people_in_both_splits_are_refused(words, built, table, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    train = pq.read_table(table / "train-0.parquet").to_pylist()
    own = pq.read_table(table / "validation-0.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist(train), mixed / "train-0.parquet")
    pq.write_table(pa.Table.from_pylist([*own[:4], *train[:2]]), mixed / "validation-0.parquet")
    short = [f"out={tmp_path / 'run'}", "trainer.device=cpu", "trainer.steps=1", "validation_pictures=2"]
    short.append(f"cache={tmp_path / 'cache'}")
    status, output = run(main, *words, f"data.path={mixed}", *short)
    assert status == 2
    assert f"1 persons are in the training and in the validation split (as {train[0]['identity']})" in output
    assert not (tmp_path / "run").exists()
    # Numbers of rows are nobody's name, and one split for both is a choice.
    for change in (["data.identity=none", "same_picture=1"], ["data.validation=train"]):
        status, output = run(main, *words, f"data.path={mixed}", *short, f"out={tmp_path / change[0]}", *change)
        assert status == 0, output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("photos.reach=1", "photos.reach"),
        ("photos.min_side=0", "photos.min_side"),
        ("pair_cosine=[0.9,0.2]", "pair_cosine"),
        ("data.portrait=2", "data.portrait"),
        ("photos.min_side=4000", "portrait_too_small"),
    ],
)
def test_bad_input_is_named(words, tmp_path, change, message):
    status, output = run(build_features, *words, f"cache={tmp_path}", change)
    assert status == 2
    assert message in output


def test_portraits_that_are_cut_already_take_no_framing(arguments, tmp_path):
    status, output = run(main, *arguments, f"out={tmp_path}", "photos.reach=2")
    assert status == 2
    assert "photos" in output
