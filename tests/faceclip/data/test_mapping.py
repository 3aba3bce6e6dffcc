"""Rows of foreign data sets as records: ready mappings, cells of every form, and what is refused."""

import numpy as np
import pytest

from faceclip.data.mapping import ColumnsConfig, DataConfig, RejectedRecord, RowMapping, parse_box, parse_landmarks
from faceclip.errors import ConfigError, DataError

FOLDER = "/pictures"


def mapping(names, layout="files", **changes) -> RowMapping:
    return RowMapping(DataConfig(path="x", **changes), layout, names, "x")


def test_a_plain_row():
    row = {"image": {"bytes": b"abc", "path": None}, "caption": " a person ", "identity": 7, "key": "k1"}
    record = mapping(row).read(row, 3)
    assert (record.image, record.captions, record.person, record.key) == (b"abc", ("a person",), "7", "k1")
    assert record.box is None
    assert record.landmarks is None


def test_captions_of_every_form_and_of_several_columns():
    columns = ColumnsConfig(captions=("short", "long"))
    row = {"image": b"x", "identity": "a", "short": ["one", "", "two"], "long": [{"text": "three"}, {"text": "one"}]}
    assert mapping(row, columns=columns).read(row, 0).captions == ("one", "two", "three")


@pytest.mark.parametrize(
    "layout_row",
    [
        {
            "url": "http://a/b.jpg, more words",
            "face_box": [10, 20, 50, 80],
            "laion_caption": "x",
            "face_caption": "She.",
        },
        {
            "_id": "i7",
            "url": "http://a/b.jpg, more words",
            "box": "[10, 20, 50, 80]",
            "laion_caption": ["x"],
            "caption": ["She."],
        },
    ],
    ids=["version 1", "version 2"],
)
def test_both_versions_of_facecaption(layout_row):
    found = mapping(layout_row, "facecaption", identity="none", images=FOLDER).read(layout_row, 5)
    assert found.captions == ("She.",)
    assert found.box.tolist() == [10, 20, 50, 80]
    assert found.image is None
    assert found.url == "http://a/b.jpg, more words"
    assert found.person == "row 5"
    assert found.key == layout_row.get("_id", "row 5")


def test_facecaption_needs_a_decision_about_identities_and_pictures():
    columns = ("url", "face_box", "face_caption")
    with pytest.raises(DataError, match=r"FaceCaption-15M has no column.*data\.identity=none"):
        mapping(columns, "facecaption", images=FOLDER)
    with pytest.raises(DataError, match=r"nothing is downloaded here: set data\.images"):
        mapping(columns, "facecaption", identity="none")


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        (("image", "caption"), {}, r"no column 'identity' or 'person'.*image, caption.*data\.identity=none"),
        (("image", "identity"), {}, r"no column 'captions' or 'caption'.*data\.columns\.captions=NAME"),
        (("caption", "identity"), {}, r"for the image.*data\.columns\.image=NAME"),
        (("image", "caption", "identity"), {"columns": ColumnsConfig(box="bbox")}, r"no column 'bbox' for the box"),
        (("image", "caption", "identity"), {"columns": ColumnsConfig(split="fold")}, r"no column 'fold' for the split"),
    ],
)
def test_a_missing_column_is_named_with_its_remedy(columns, changes, message):
    with pytest.raises(DataError, match=message):
        mapping(columns, **changes)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"caption": "  "}, "empty_caption"),
        ({"caption": None}, "empty_caption"),
        ({"caption": 5}, "caption_not_text"),
        ({"image": None}, "no_image"),
        ({"image": {"bytes": None, "path": None}}, "no_image"),
        ({"image": 3.5}, "no_image"),
        ({"identity": None}, "no_identity"),
        ({"identity": ""}, "no_identity"),
        ({"identity": " \t"}, "no_identity"),
        ({"identity": float("nan")}, "no_identity"),
        ({"identity": np.float32("nan")}, "no_identity"),
        ({"box": "[1, 2, 3"}, "bad_box"),
        ({"box": [1, 2, 3]}, "bad_box"),
        ({"box": [30, 2, 10, 20]}, "bad_box"),
        ({"box": [float("nan"), 2, 10, 20]}, "bad_box"),
        ({"box": None}, "bad_box"),
        ({"box": [1, 2, 10**400, 20]}, "bad_box"),
        ({"box": "[1, 2, 1" + "0" * 5000 + ", 20]"}, "bad_box"),
        ({"box": "[" * 200_000}, "bad_box"),
        ({"landmarks": [[1, 2]] * 4}, "bad_landmarks"),
        ({"caption": ["fine", "half \ud83d"]}, "not_utf8"),
        ({"identity": "half \ud83d"}, "not_utf8"),
        ({"image": "half\ud83d.png"}, "not_utf8"),
        ({"fold": "half \ud83d"}, "not_utf8"),
        ({"key": "half \ud83d"}, "not_utf8"),
        ({"landmarks": [[1, 2]] * 5}, "bad_landmarks"),
    ],
)
def test_unusable_cells_have_a_reason(cells, reason):
    points = [[1, 2], [8, 2], [4, 5], [2, 8], [7, 8]]
    row = {
        "image": b"x",
        "caption": "c",
        "identity": "a",
        "box": [1, 2, 9, 9],
        "landmarks": points,
        "fold": "a",
    } | cells
    with pytest.raises(RejectedRecord) as caught:
        mapping(row, columns=ColumnsConfig(box="box", landmarks="landmarks", split="fold")).read(row, 12)
    assert caught.value.reason == reason
    assert "row 12" in str(caught.value)
    str(caught.value).encode()


def test_boxes_and_points():
    assert parse_box({"x": 10, "y": 20, "w": 5, "h": 6}, "xywh", "r").tolist() == [10, 20, 15, 26]
    assert parse_box("[10, 20, 15.5, 26]", "xyxy", "r").tolist() == [10, 20, 15.5, 26]
    points = parse_landmarks(list(range(10)), "r")
    assert points.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    np.testing.assert_array_equal(parse_landmarks(points, "r"), points)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_bad_share": 1.5},
        {"validation_share": -0.1},
        {"shard_rows": 0},
        {"limit": -1},
        {"validation_share": 0.1, "columns": ColumnsConfig(split="fold")},
    ],
)
def test_impossible_configurations(changes):
    with pytest.raises(ConfigError, match=r"data\."):
        DataConfig(path="x", **changes)
