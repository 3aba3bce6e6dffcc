"""Every measure on pictures that curation must keep and on pictures that it must drop."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from faceclip.data.curate import face_measures, pixels
from faceclip.data.curate.catalog import SHIPPED, choose_measures
from faceclip.data.curate.drawn import drawn_face
from faceclip.data.curate.measures import Picture
from faceclip.data.curate.rules import KeepConfig, active_rules
from faceclip.data.curate.shards import table_schema
from faceclip.data.curate.text import watermark_likeness
from faceclip.errors import ConfigError
from faceclip.faces import MTCNNDetector
from tests.faceclip.data.curate.pictures import scene

DETECTOR = MTCNNDetector()


def looked_at(image: np.ndarray) -> Picture:
    return Picture(pixels=np.ascontiguousarray(image), encoded=1000, detector=DETECTOR)


def package_picture(package: str, path: str) -> np.ndarray:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed")
    return np.asarray(Image.open(Path(found.origin).parent / path).convert("RGB"))


@pytest.fixture(scope="module")
def portrait() -> Picture:
    whole = package_picture("skimage", "data/astronaut.png")
    return looked_at(cv2.resize(whole[:320, 64:384], (250, 250), interpolation=cv2.INTER_AREA))


def drops(picture: np.ndarray | Picture, *names: str) -> set[str]:
    """Names of the rules that drop a picture, by the usual thresholds on these measures."""
    picture = picture if isinstance(picture, Picture) else looked_at(picture)
    measures = choose_measures(names, ())
    figures = {name: value for measure in measures for name, value in measure.compute(picture).items()}
    assert set(figures) == {name for measure in measures for name in measure.columns}
    rules = active_rules(KeepConfig(), table_schema(measures))
    value = {rule.name: figures[rule.column] for rule in rules}
    return {r.name for r in rules if value[r.name] is not None and r.drops(np.array([float(value[r.name])]))[0]}


PIXELS = ("size", "color", "exposure", "blur")


def test_a_sharp_portrait_passes_every_rule(portrait):
    assert drops(portrait, *PIXELS, "faces") == set()


def test_scenes_pass_the_rules_of_pixels():
    assert [drops(scene(seed), *PIXELS) for seed in range(4)] == [set()] * 4


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("small", lambda p: cv2.resize(p, (100, 100), interpolation=cv2.INTER_AREA)),
        ("long", lambda p: np.tile(p, (1, 4, 1))),
        ("grey", lambda p: np.repeat(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)),
        ("toned", lambda p: (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)[..., None] * [1.0, 0.85, 0.65]).astype(np.uint8)),
        ("dark", lambda p: p // 10),
        ("bright", lambda p: 255 - (255 - p) // 12),
        ("white", lambda p: np.clip(p.astype(int) * 4, 0, 255).astype(np.uint8)),
        ("pale", lambda p: 120 + p // 16),
        ("blurred", lambda p: cv2.GaussianBlur(p, (0, 0), 5)),
    ],
)
def test_faults_of_pixels_are_dropped(portrait, rule, fault):
    assert rule in drops(fault(portrait.pixels), *PIXELS)


def test_a_picture_of_one_level_has_no_sharpness():
    assert pixels.blur(looked_at(np.full((40, 60, 3), 90, np.uint8)))["sharpness"] == 0


def test_a_group_and_a_blurred_face_and_no_face_are_dropped(portrait):
    pair = np.hstack([portrait.pixels, portrait.pixels[:, ::-1]])
    soft = cv2.GaussianBlur(portrait.pixels, (0, 0), 5)
    assert "group" in drops(pair, "faces")
    assert "group" in drops(package_picture("insightface", "data/images/t1.jpg"), "faces")
    assert "blurred_face" in drops(soft, "faces")
    assert drops(cv2.resize(portrait.pixels, (60, 60)), "faces") & {"small_face", "no_face"}
    assert drops(np.full((160, 160, 3), 128, np.uint8), "faces") == {"no_face"}


def test_faces_on_their_side_are_looked_for_unless_all_pictures_stand_upright(portrait):
    side = np.ascontiguousarray(np.rot90(portrait.pixels))
    found = Picture(pixels=side, encoded=1000, detector=DETECTOR).faces
    assert [face.turn for face in found] == [270]
    upright = Picture(pixels=side, encoded=1000, detector=DETECTOR, turned=False).faces
    assert all(face.turn == 0 for face in upright)


def test_faces_are_looked_for_in_a_reduced_picture_first(portrait):
    large = cv2.resize(portrait.pixels, (500, 500), interpolation=cv2.INTER_CUBIC)
    (whole,) = looked_at(large).faces
    (found,) = Picture(pixels=large, encoded=1000, detector=DETECTOR, detect_px=250).faces
    np.testing.assert_allclose(found.landmarks, whole.landmarks, atol=0.1 * np.ptp(whole.landmarks[:2, 0]))
    small = np.full((500, 500, 3), 127, np.uint8)
    small[100:160, 100:160] = cv2.resize(portrait.pixels, (60, 60), interpolation=cv2.INTER_AREA)
    (whole,) = looked_at(small).faces
    (found,) = Picture(pixels=small, encoded=1000, detector=DETECTOR, detect_px=64).faces  # 8 px there: none
    assert np.array_equal(found.landmarks, whole.landmarks)


def test_faces_below_the_smallest_one_are_looked_for_in_the_usual_search_only(portrait):
    room = np.full((500, 500, 3), 127, np.uint8)
    room[100:160, 100:160] = cv2.resize(portrait.pixels, (60, 60), interpolation=cv2.INTER_AREA)
    room[200:450, 200:450] = portrait.pixels
    assert len(looked_at(room).faces) == 2
    (found,) = Picture(pixels=room, encoded=1000, detector=DETECTOR, coarse=36).faces
    (whole,) = portrait.faces
    np.testing.assert_allclose(found.landmarks, whole.landmarks + 200, atol=0.1 * np.ptp(whole.landmarks[:2, 0]))
    # Looked at in a quarter of its size, a face of 36 px has 9 and a detector finds those from 20 on.
    (reduced,) = Picture(pixels=room, encoded=1000, detector=DETECTOR, coarse=36, detect_px=125).faces
    assert abs(reduced.landmarks - found.landmarks).max() < 0.15 * np.ptp(whole.landmarks[:2, 0])


def test_hashes_survive_jpeg_and_size_and_that_of_the_face_survives_a_crop(portrait):
    def bits(first: int, second: int) -> int:
        return ((first ^ second) & (1 << 64) - 1).bit_count()

    _, data = cv2.imencode(".jpg", portrait.pixels, [cv2.IMWRITE_JPEG_QUALITY, 30])
    worse = looked_at(cv2.imdecode(data, cv2.IMREAD_COLOR))
    smaller = looked_at(cv2.resize(portrait.pixels, (180, 180), interpolation=cv2.INTER_AREA))
    cut = looked_at(portrait.pixels[12:-25, 20:-10])
    whole = pixels.hashes(portrait)["hash"]
    assert bits(pixels.hashes(worse)["hash"], whole) <= 4 and bits(pixels.hashes(smaller)["hash"], whole) <= 4
    assert bits(pixels.hashes(looked_at(scene(0)))["hash"], whole) > 12
    face, cut_face = face_measures.faces(portrait)["face_hash"], face_measures.faces(cut)["face_hash"]
    assert bits(cut_face, face) <= 4 and bits(pixels.hashes(cut)["hash"], whole) > 4


def test_drawings_are_dropped_and_portraits_are_not(portrait):
    pytest.importorskip("animeface")
    drawing = drawn_face(250)
    assert {"cartoon", "flat"} <= drops(drawing, "cartoon")
    noisy = np.clip(drawing + np.random.default_rng(0).normal(0, 4, drawing.shape), 0, 255).astype(np.uint8)
    assert "cartoon" in drops(noisy, "cartoon")
    assert drops(portrait, "cartoon") == set()


def test_captions_and_watermarks_are_dropped_and_portraits_are_not(portrait):
    pytest.importorskip("rapidocr")
    captioned, marked = portrait.pixels.copy(), portrait.pixels.copy()
    for line, words in enumerate(("when seven wizards", "boil many onions")):
        cv2.putText(
            captioned, words, (6, 190 + 30 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA
        )
    cv2.putText(marked, "www.pictures.com", (20, 235), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
    assert "text" in drops(captioned, "text") and "watermark" not in drops(captioned, "text")
    assert "watermark" in drops(marked, "text")
    assert drops(portrait, "text") == set()
    # Larger pictures are searched only around the traces of text in a smaller one: small letters must leave one.
    large = cv2.resize(portrait.pixels, (500, 500), interpolation=cv2.INTER_CUBIC)
    assert drops(large, "text") == set()
    for line in range(3):
        words = "when seven wizards boil many onions for the dogs"
        cv2.putText(large, words, (12, 420 + 24 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    assert "text" in drops(large, "text")


def test_texts_in_several_places_of_a_larger_picture_are_measured_in_its_pixels(portrait):
    pytest.importorskip("rapidocr")
    large = cv2.resize(portrait.pixels, (480, 480), interpolation=cv2.INTER_CUBIC)
    bars = 0
    for words, (x, y) in (("QUICK FOXES", (10, 40)), ("LAZY DOGS", (300, 465))):
        (width, height), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, 0.8, 2)
        cv2.rectangle(large, (x - 5, y - height - 6), (x + width + 5, y + 8), (0, 0, 0), -1)
        cv2.putText(large, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2, cv2.LINE_AA)
        bars += (width + 10) * (height + 14)
    found = SHIPPED["text"].compute(looked_at(large))
    assert found["text_boxes"] == 2
    assert bars < found["text_share"] * large[..., 0].size < 2 * bars  # the boxes of the detector are larger


def test_words_of_agencies_and_repeated_words_are_like_a_watermark():
    assert watermark_likeness([("HOTEL", 0.9), ("(c) Somebody", 0.7)]) == 0.7
    assert watermark_likeness([("Mira Foto", 0.8)] * 3) == 0.8
    assert watermark_likeness([("HOTEL", 0.9), ("Exit", 0.9)]) == 0
    assert watermark_likeness([]) == 0


def test_measures_compute_the_same_again(portrait):
    again = looked_at(portrait.pixels)
    for name in (*PIXELS, "hash", "faces"):
        assert SHIPPED[name].compute(portrait) == SHIPPED[name].compute(again)


@pytest.mark.parametrize(
    ("names", "plugins", "word"),
    [
        (("colour",), (), "'colour'"),
        ((), (), "measures"),
        ((), ("nowhere:X",), "nowhere:X"),
        ((), ("faceclip.errors:DataError",), "faceclip.errors:DataError"),
        ((), ("faceclip.data.curate.pixels:size",), "faceclip.data.curate.pixels:size"),  # needs a picture
        (("size",), ("faceclip.data.curate.pixels:SIZE",), "'width'"),
    ],
)
def test_measures_that_cannot_be_chosen(names, plugins, word):
    with pytest.raises(ConfigError, match=word):
        choose_measures(names, plugins)
