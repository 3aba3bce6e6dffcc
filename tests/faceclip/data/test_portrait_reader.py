"""From a row to crop and picture: header before decoding, detection near a given box, reasons of refusal."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faceclip.data.arrays import load_arrays
from faceclip.data.cells import RejectedRecord
from faceclip.data.mapping import DataConfig, RawRecord
from faceclip.data.portrait_reader import (
    FoundPortrait,
    PortraitReader,
    build_detector,
    cut_square,
    square_around,
)
from faceclip.errors import ConfigError, DataError
from faceclip.faces.align import (
    MAX_MISFIT,
    crop_side,
    encoder_crop,
    template,
    template_misfit,
    turn_points,
)
from faceclip.faces.detect import MTCNNDetector
from faceclip.faces.looks import detect_with_retries
from tests.faceclip.faces.test_upright import package_picture


def record(image, **changes) -> RawRecord:
    values = {"key": "r", "url": "", "captions": ("c",), "person": "p", "split": "", "box": None, "landmarks": None}
    return RawRecord(image=image, **(values | changes))


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def reader(folder: Path | None = None, **changes) -> PortraitReader:
    return PortraitReader(DataConfig(path="x", **changes), folder=folder, crop_size=36, picture_size=32)


def portrait(reader: PortraitReader, raw: RawRecord, landmarks: np.ndarray | None = None) -> FoundPortrait:
    """A record's portrait as the pool makes it."""
    return reader.prepare(raw, *reader.locate(raw), landmarks)


@pytest.fixture(scope="module")
def frontal(tiny_dataset) -> tuple[np.ndarray, np.ndarray]:
    """Two portraits (64, 64, 3) in which the detector finds the face, and their true landmarks."""
    arrays = load_arrays(tiny_dataset, "train")
    detector = MTCNNDetector(thresholds=(0.6, 0.7, 0.9))
    rows = [
        row
        for row in np.flatnonzero(np.asarray(arrays.index) == 0)
        if detect_with_retries(np.asarray(arrays.images[row]), detector)
    ][:2]
    return np.array(arrays.images[rows]), np.array(arrays.landmarks_5[rows], np.float64)


def test_given_landmarks_are_used_as_they_are(frontal):
    pixels, points = frontal[0][0], frontal[1][0]
    found = portrait(reader(), record(encode(pixels), landmarks=points))
    np.testing.assert_array_equal(found.crop, encoder_crop(pixels, points.astype(np.float32), 36))
    again = portrait(reader(), record(encode(pixels)), landmarks=found.landmarks)
    np.testing.assert_array_equal(again.crop, found.crop)
    assert again.digest == found.digest
    relative = portrait(reader(box_units="relative"), record(encode(pixels), landmarks=(points + 0.5) / 64))
    np.testing.assert_allclose(relative.landmarks, found.landmarks, atol=1e-4)


def test_a_face_is_found_near_the_given_box(frontal):
    (left, right), truth = frontal
    both = np.concatenate([left, right], axis=1)
    for start in (0, 64):
        box = np.array([start + 16, 12, start + 48, 52], np.float64)
        found = portrait(reader(), record(encode(both), box=box)).landmarks
        true = truth[start // 64] + [start, 0]
        assert np.abs(found - true).max() < 5  # pixels; the other face is 64 away
    with pytest.raises(RejectedRecord) as caught:
        portrait(reader(), record(encode(both), box=np.array([0.0, 0, 6, 6])))
    assert caught.value.reason == "no_face"
    with pytest.raises(RejectedRecord) as caught:
        portrait(reader(), record(encode(both), box=np.array([500.0, 0, 600, 60])))
    assert caught.value.reason == "bad_box"


def test_upright_photos_are_not_searched_in_other_turns_near_a_box():
    astronaut = package_picture("skimage", "data/astronaut.png")
    (face,) = detect_with_retries(astronaut, MTCNNDetector())
    corners = turn_points(face.box.reshape(2, 2), 2, 512, 512)
    box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    row = record(encode(np.ascontiguousarray(np.rot90(astronaut, 2))), box=box)
    found = portrait(reader(), row).landmarks
    np.testing.assert_allclose(found, turn_points(face.landmarks, 2, 512, 512), atol=3)
    with pytest.raises(RejectedRecord) as caught:
        portrait(reader(turned=False), row)
    assert caught.value.reason == "no_face"


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (png_header(100_000, 100_000), "image_too_large"),  # decoding it would find no pixels: the header decides
        (png_header(64, 64), "unreadable_image"),
        (b"no picture", "unreadable_image"),
        (encode(np.full((64, 64, 3), 128, np.uint8)), "no_face"),
        (encode(np.zeros((1, 4000, 3), np.uint8)), "odd_shape"),
        (encode(np.zeros((1, 1, 3), np.uint8)), "no_face"),
        ("missing.jpg", "no_image"),
        ("x" * 300 + ".jpg", "no_image"),
        ("/" + "x" * 300 + ".jpg", "no_image"),
        ("null\0byte.jpg", "no_image"),
        ("circle/a.jpg", "no_image"),
        ("zip://a.jpg::in/damaged.zip", "unreadable_image"),
        ("../outside.jpg", "no_image"),
        ("https://example.org/a.jpg", "no_image"),
        ("file:///etc/hostname", "no_image"),
        ("zip://a.jpg::/etc/a.zip", "no_image"),
        (None, "no_image"),
    ],
)
def test_every_refusal_has_its_reason(tmp_path, image, reason):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in" / "circle")
    (tmp_path / "in" / "damaged.zip").write_bytes(b"PK no")
    if isinstance(image, str):
        image = image.replace("::in", f"::{tmp_path / 'in'}")
    (tmp_path / "outside.jpg").write_bytes(encode(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(RejectedRecord) as caught:
        portrait(reader(tmp_path / "in"), record(image))
    assert caught.value.reason == reason
    assert str(caught.value)


def test_boxes_of_cut_pictures_are_an_error(frontal, tmp_path):
    table = {
        "url": ["http://a/0"],
        "key": ["0"],
        "width": [64],
        "height": [64],
        "original_width": [90],
        "original_height": [64],
    }
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "0.png").write_bytes(encode(frontal[0][0]))
    pictures = reader(images=str(tmp_path))
    with pytest.raises(DataError, match=rf"^r: .*{tmp_path}.* resize_mode=keep_ratio"):
        pictures.locate(record(None, url="http://a/0", box=np.array([1.0, 2, 30, 40])))
    assert pictures.locate(record(None, url="http://a/0"))[0] == str(tmp_path / "0" / "0.png")  # its face is looked for


def test_landmarks_that_cannot_be_are_refused(frontal):
    image = encode(frontal[0][0])
    wrong = {"far": frontal[1][0] * 100, "of a larger copy": frontal[1][0] + 64, "small": frontal[1][0] * 0.05 + 30}
    reasons = {"far": "bad_landmarks", "of a larger copy": "bad_landmarks", "small": "face_too_small"}
    for name, reason in reasons.items():
        points = wrong[name]
        with pytest.raises(RejectedRecord) as caught:
            portrait(reader(), record(image, landmarks=points))
        assert caught.value.reason == reason


def test_a_picture_in_an_archive_of_the_data(frontal, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b/c.png", encode(frontal[0][0]))
    address = f"zip://b/c.png::{tmp_path / 'a.zip'}"
    found = portrait(reader(tmp_path), record(address, landmarks=frontal[1][0]))
    assert found.digest == portrait(reader(), record(encode(frontal[0][0]), landmarks=frontal[1][0])).digest


def test_another_order_of_landmarks_is_noticed(tiny_dataset):
    arrays = load_arrays(tiny_dataset, "train")
    true = np.asarray(arrays.landmarks_5, np.float64)
    assert max(map(template_misfit, true)) < MAX_MISFIT  # also of heads turned by up to 60°
    for wrong in (true[:, [1, 0, 2, 4, 3]], true[..., ::-1].copy()):  # right before left; y before x
        assert min(map(template_misfit, wrong)) > MAX_MISFIT
    assert template_misfit(template(448).astype(np.float64) * 0.3 + 7) < 1e-5
    with pytest.raises(RejectedRecord, match=r"^r: landmarks \[\[") as caught:
        portrait(reader(), record(encode(np.array(arrays.images[0])), landmarks=true[0][[1, 0, 2, 4, 3]]))
    assert caught.value.reason == "bad_landmarks"


def test_several_faces_by_policy(frontal):
    both = np.concatenate(list(frontal[0]), axis=1)
    with pytest.raises(RejectedRecord) as caught:
        portrait(reader(face="only"), record(encode(both)))
    assert caught.value.reason == "several_faces"


def test_square_around_a_face():
    image = np.zeros((300, 400, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(300)[:, None] // 2, np.arange(400) // 2
    points = template(100) + np.array([150, 120])  # an upright crop of 100 px whose corner is at x = 150, y = 120
    assert crop_side(points) == pytest.approx(100, rel=1e-4)
    cut = cut_square(image, square_around(image, points, 2.0), 200)
    # 200 px around the center (199.5, 169.5) leave the picture at no side: columns 100 to 299, rows 70 to 269.
    np.testing.assert_array_equal(cut, image[70:270, 100:300])
    shifted = cut_square(image, square_around(image, points + np.array([180, 100]), 2.0), 200)
    np.testing.assert_array_equal(shifted, image[100:300, 200:400])  # moved inside
    assert square_around(image, points, 0) == (50, 0, 300)
    np.testing.assert_array_equal(cut_square(image, (50, 0, 300), 300), image[:, 50:350])


def test_detectors_are_named():
    with pytest.raises(ConfigError, match=r"data\.detector=yolo"):
        build_detector(DataConfig(path="x", detector="yolo"))
    with pytest.raises(ConfigError, match="non-commercial"):
        build_detector(DataConfig(path="x", detector="insightface:buffalo_l"))
    with pytest.raises(DataError, match="nowhere"):
        reader(images="/nowhere")


def test_a_face_is_looked_for_in_a_smaller_picture_first(frontal):
    """Points are those of the whole picture; a face that is too small there is found in the picture as it is."""
    pixels, points = frontal[0][0], frontal[1][0]
    wide = np.full((200, 400, 3), 127, np.uint8)
    wide[100:164, 250:314] = pixels
    as_it_is = portrait(reader(), record(encode(wide))).landmarks
    np.testing.assert_allclose(as_it_is, points + np.array([250, 100]), atol=4)
    for changes in ({"detect_px": 200}, {"detect_px": 64}, {"turned": False}, {"detect_px": 200, "turned": False}):
        found = portrait(reader(**changes), record(encode(wide))).landmarks
        np.testing.assert_allclose(found, as_it_is, atol=4)
    assert (portrait(reader(detect_px=64), record(encode(wide))).landmarks == as_it_is).all()
    assert reader().finding != reader(turned=False).finding != reader(detect_px=200).finding
    with pytest.raises(ConfigError, match=r"data\.detect_px"):
        DataConfig(path="x", detect_px=10)
