"""Rows of foreign data sets as records: ready mappings, cells of every form, and what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from faceclip.data.cells import RejectedRecord, parse_box, parse_landmarks
from faceclip.data.mapping import (
    ColumnsConfig,
    DataConfig,
    RowMapping,
    cache_folder,
    data_at,
    kept_for_validation,
    text_hash,
)
from faceclip.errors import ConfigError, DataError

FOLDER = "/pictures"


def nested(cell) -> list:
    """A cell in more lists than Python's stack holds."""
    for _ in range(100_000):
        cell = [cell]
    return cell


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
    with pytest.raises(DataError, match=r"^x: .*data\.identity=none.*data\.columns\.identity"):
        mapping(columns, "facecaption", images=FOLDER)
    with pytest.raises(DataError, match=r"^x: .*'url'.*data\.images"):
        mapping(columns, "facecaption", identity="none")


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        (("image", "caption"), {}, r"'identity' or 'person'.*image, caption.*data\.identity=none"),
        (("image", "identity"), {}, r"'captions' or 'caption'.*data\.columns\.captions=NAME"),
        (("caption", "identity"), {}, r"'image' or .*data\.columns\.image=NAME"),
        (("image", "caption", "identity"), {"columns": ColumnsConfig(box="bbox")}, r"'bbox'.*data\.columns\.box=NAME"),
        (
            ("image", "caption", "identity"),
            {"columns": ColumnsConfig(split="fold")},
            r"'fold'.*columns\.split=NAME",
        ),
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
        ({"box": "[" * 200_000}, "nested"),
        ({"box": nested("x")}, "nested"),
        ({"caption": nested("x")}, "nested"),
        ({"key": nested("x")}, "nested"),
        ({"landmarks": nested(1)}, "nested"),
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


def test_a_mask_of_no_words_needs_no_path():
    row = {
        "image": "a.png",
        "face_emotion_caption": "A smiling person.",
        "emotion_parsing_masks": [{"mask": None, "token_indices": []}, {"mask": "b.png", "token_indices": [2]}],
        "face_attribute_caption": "A person with short hair.",
        "atrribute_parsing_masks": [{"mask": "", "token_indices": []}],
    }
    record = mapping(row, "facecaptionmask", identity="none").read(row, 0)
    assert [(mask.path, mask.positions) for mask in record.masks] == [("Emotion/b.png", (2,))]
    row["emotion_parsing_masks"][0]["token_indices"] = [1]
    with pytest.raises(RejectedRecord) as caught:
        mapping(row, "facecaptionmask", identity="none").read(row, 0)
    assert caught.value.reason == "bad_mask"


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
        {"masks": "masks"},
        {"masks": "masks", "layout": "files"},
    ],
)
def test_impossible_configurations(changes):
    with pytest.raises(ConfigError, match=r"data\."):
        DataConfig(path="x", **changes)


def test_hashes_of_texts_are_those_of_earlier_releases():
    """Caches and validation splits are found by them: the first 8 bytes of SHA-256, little-endian, signed."""
    assert (
        text_hash("abc")
        == -1527000031757436742
        == int.from_bytes(bytes.fromhex("ba7816bf8f01cfea"), "little", signed=True)
    )
    assert text_hash("größe") != text_hash("grosse")


def test_whole_persons_are_kept_for_validation_by_the_share():
    persons = np.array([text_hash(f"person {number}") for number in range(4000)])
    quarter, half = kept_for_validation(persons, 0.25), kept_for_validation(persons, 0.5)
    assert quarter.mean() == pytest.approx(0.25, abs=0.02) and half.mean() == pytest.approx(0.5, abs=0.03)
    assert not (quarter & ~half).any()  # a larger share keeps those of the smaller one
    assert not kept_for_validation(persons, 0.0).any()
    assert kept_for_validation(persons, 1.0).all()
    # As unsigned: 0 is the smallest, −1 the largest, 2⁶² a quarter of the way.
    edge = np.array([0, -1, 2**62 - 1, 2**62, 2**63 - 1])
    assert kept_for_validation(edge, 0.25).tolist() == [True, False, True, False, False]


def test_columns_are_taken_by_the_first_name_that_the_data_has():
    row = {"jpg": b"x", "image": b"y", "text": "t", "caption": "c", "person": 1, "identity": 2, "id": 3, "key": 4}
    record = mapping(row).read(row, 0)
    assert (record.image, record.captions, record.person, record.key) == (b"y", ("c",), "2", "4")
    explicit = mapping(row, columns=ColumnsConfig(image="jpg", captions=("text",), identity="person", key="id"))
    record = explicit.read(row, 0)
    assert (record.image, record.captions, record.person, record.key) == (b"x", ("t",), "1", "3")


def test_facts_hold_every_role_and_the_meaning_of_identity():
    names = ("image", "caption", "identity", "bbox", "points", "fold", "key")
    plain = mapping(names)
    assert plain.facts == (
        "mapping 2: ('image', None, ('caption',), 'identity', None, None, None, 'key'), identity column"
    )
    other = mapping(names, identity="none", columns=ColumnsConfig(box="bbox", landmarks="points", split="fold"))
    assert other.facts == (
        "mapping 2: ('image', None, ('caption',), None, 'bbox', 'points', 'fold', 'key'), identity none"
    )


def test_pictures_named_by_local_paths():
    names = ("image", "caption", "identity")
    found = [mapping(names).picture_path({"image": cell}) for cell in ("a/b.png", "http://a/b.png", b"x", None, "")]
    assert found == ["a/b.png", None, None, None, None]
    cells = ({"path": "c.png", "bytes": None}, {"path": "c.png", "bytes": b"x"}, Path("d.png"), "half\ud83d.png")
    assert [mapping(names).picture_path({"image": cell}) for cell in cells] == ["c.png", None, "d.png", None]
    links = mapping(("url", "caption", "identity"), "facecaption", identity="none", images=FOLDER)
    assert links.picture_path({"url": "a.png"}) is None


def test_cells_of_other_kinds():
    row = {"image": Path("a.png"), "caption": b"\xef\xbb\xbfone ", "identity": 0, "key": None}
    record = mapping(row).read(row, 4)
    assert (record.image, record.captions, record.person, record.key) == ("a.png", ("one",), "0", "row 4")
    links = mapping(("url", "caption"), "facecaption", identity="none", images=FOLDER)
    for found, cells, reason in ((mapping(row), {"caption": b"\xff"}, "not_utf8"), (links, {"url": None}, "no_image")):
        with pytest.raises(RejectedRecord) as caught:
            found.read({"caption": "c", "image": b"x", "identity": 1} | cells, 0)
        assert caught.value.reason == reason
    for numbers in ([1, 2, True, 4], [1, 2, "x", 4], [1, 2, None, 4], [1, 2, float("inf"), 4]):
        with pytest.raises(RejectedRecord):
            parse_box(numbers, "xyxy", "r")
    for empty in ([1, 2, 1, 9], [1, 2, 9, 2], [1, 2, 0, 9]):
        with pytest.raises(RejectedRecord):
            parse_box(empty, "xyxy", "r")
    assert parse_box(np.array([[1, 2], [1.5, 2.5]]), "xyxy", "r").tolist() == [1, 2, 1.5, 2.5]
    assert parse_landmarks([[0, 0]] * 4 + [[0, 1]], "r").shape == (5, 2)


def test_a_rejection_survives_another_process():
    found = pickle.loads(pickle.dumps(RejectedRecord("bad_box", "row 3: a box of 3 numbers")))
    assert found.reason == "bad_box" and str(found) == "row 3: a box of 3 numbers"


@pytest.mark.parametrize("name", ["shard_rows", "batch_size", "workers", "max_pixels"])
def test_counts_begin_at_one(name):
    assert getattr(DataConfig(path="x", **{name: 1}), name) == 1
    with pytest.raises(ConfigError, match=rf"data\.{name}: .*, got 0$"):
        DataConfig(path="x", **{name: 0})


def test_shares_and_limits_at_their_borders():
    for changes in ({"validation_share": 1.0}, {"max_bad_share": 0.0}, {"limit": 0, "portrait": 0.0}):
        DataConfig(path="x", **changes)
    for changes in ({"max_bad_share": -0.1}, {"portrait": -1.0}, {"validation_share": 1.01}):
        with pytest.raises(ConfigError, match=rf"data\.{next(iter(changes))}: "):
            DataConfig(path="x", **changes)


@pytest.mark.parametrize(
    ("name", "most"),
    [("shard_rows", 10**6), ("batch_size", 65_536), ("workers", 1024), ("max_pixels", 4 * 10**9), ("portrait", 100)],
)
def test_numbers_beyond_reason_are_refused(name: str, most: int) -> None:
    assert getattr(DataConfig(path="x", **{name: most}), name) == most
    with pytest.raises(ConfigError, match=rf"^data\.{name}: "):
        DataConfig(path="x", **{name: most + 1})


def test_a_first_look_is_at_64_pixels_or_more() -> None:
    assert DataConfig(detect_px=64).detect_px == 64
    for number in (-1, 1, 63):
        with pytest.raises(ConfigError, match=rf"^data\.detect_px: .*{number}$"):
            DataConfig(detect_px=number)


def test_settings_that_decide_which_pictures_and_rows_count_are_those_of_earlier_releases() -> None:
    """A cache that was built with them is found again."""
    config = DataConfig()
    numbers = (config.portrait, config.max_pixels, config.max_bad_share, config.validation_share, config.limit)
    assert numbers == (2.5, 64_000_000, 0.1, 0.0, 0) and (config.detect_px, config.turned) == (0, True)
    assert (config.shard_rows, config.batch_size, config.workers) == (1024, 64, 2)
    assert not config.streaming and not config.accept_non_commercial


def test_a_path_stands_for_a_data_set_on_this_machine_and_its_cache_beside_it(tmp_path: Path) -> None:
    table, other = tmp_path / "rows.CSV", tmp_path / "rows.xls"
    for file in (table, other):
        file.write_text("")
    config = DataConfig(path="x")
    assert data_at(config) is config
    assert [data_at(path).layout for path in (str(tmp_path), "", "owner/name")] == ["auto", "auto", "local"]
    with pytest.raises(ConfigError, match=r"^data=/proc/1: "):
        data_at("/proc/1")
    assert cache_folder(DataConfig(path=str(tmp_path)), "given") == Path("given")
    for path in (tmp_path, table):
        assert cache_folder(DataConfig(path=str(path)), "") == tmp_path / ".features"
    assert cache_folder(DataConfig(path="owner/name"), "") == Path("data-cache/owner--name")
    with pytest.raises(ConfigError, match=r"^data\.path=.*rows\.xls: .*csv"):
        cache_folder(DataConfig(path=str(other)), "")


@pytest.mark.parametrize(
    ("value", "person"), [(-(2.0**53), None), (2.0**53, None), (2.0**53 - 1, "9007199254740991.0")]
)
def test_rounded_numbers_name_nobody(value: float, person: str | None) -> None:
    row = {"image": b"x", "caption": "c", "identity": value}
    if person is not None:
        assert mapping(row).read(row, 0).person == person
        return
    with pytest.raises(RejectedRecord) as caught:
        mapping(row).read(row, 0)
    assert caught.value.reason == "no_identity"
