"""One protocol of portraits: what renders, photos and rows of other data all give, and who is who in them."""

from pathlib import Path

import numpy as np
import pytest

from faceclip.data.arrays import load_arrays
from faceclip.data.mapping import DataConfig, RawRecord, text_hash
from faceclip.data.portrait_reader import FoundPortrait
from faceclip.data.portraits import People, Portraits, check_apart, check_divided, check_pairs, number_captions
from faceclip.data.recorded import RecordedPortraits, record_fields
from faceclip.data.records import Caption
from faceclip.errors import DataError
from faceclip.storage.shards import ShardFolder


def test_the_rows_of_each_person():
    people = People(np.array([5, -1, 5, 9, -1, 5]))
    assert [rows.tolist() for rows in (people[0], people[1], people[2])] == [[1, 4], [0, 2, 5], [3]]
    assert people.counts.tolist() == [2, 3, 1]
    assert len(people) == 3
    assert people.person.tolist() == [1, 0, 1, 2, 0, 1]
    assert [people.others(row).tolist() for row in (0, 4, 3)] == [[2, 5], [1], []]
    assert [people.with_fewer(count).tolist() for count in (1, 2, 3, 4)] == [[], [3], [1, 3], [1, 0, 3]]


def test_captions_are_numbered_as_they_appear():
    rows = [[Caption(text=text, kind="free") for text in row] for row in (["b", "a"], [], ["a", "b", "c"])]
    start, words = number_captions(rows)
    assert start.tolist() == [0, 2, 2, 5]
    assert words.tolist() == [0, 1, 1, 0, 2]


def test_a_validation_needs_a_person_with_two_pictures():
    check_pairs("DIR", np.array([3, 4, 3]))
    with pytest.raises(DataError, match=r"data\.path=DIR.*set data\.identity=none"):
        check_pairs("DIR", np.array([3, 4, 5]), "set data.identity=none")


def test_a_person_of_both_splits_is_refused(tmp_path: Path):
    def rows(name: str, *people: str) -> RecordedPortraits:
        folder = ShardFolder(tmp_path / name, {})
        folder.append(record_fields([(i, raw(who, "x"), found(i)) for i, who in enumerate(people)]))
        return RecordedPortraits(folder, folder.open(), np.arange(len(people)))

    train = rows("train", "ann", "bob", "cy")
    check_apart(train, rows("validation", "dan", "eve"))
    with pytest.raises(DataError, match=r"^1 persons .*\(as bob\).*data\.validation_share"):
        check_apart(train, rows("mixed", "dan", "bob", "bob"))
    with pytest.raises(DataError, match=r"\(as bob\)"):
        check_divided(DataConfig(path="DIR"), train, rows("own", "bob"))
    check_divided(DataConfig(path="DIR", validation="train"), train, train)
    check_divided(DataConfig(path="DIR", identity="none"), train, train)


def raw(person: str, *captions: str) -> RawRecord:
    values = {"key": person, "image": b"", "url": "", "split": "", "box": None, "landmarks": None}
    return RawRecord(person=person, captions=captions, **values)


def found(digest: int) -> FoundPortrait:
    none = np.zeros((1, 1, 3), np.uint8)
    points = np.full((5, 2), digest, np.float32)
    return FoundPortrait(
        crop=none, picture=none, square=(0, 0, 1), whole=(1, 1), landmarks=points, upright=points, digest=digest
    )


@pytest.fixture
def recorded(tmp_path: Path) -> RecordedPortraits:
    """Rows 3, 0 and 1 of two shards of two rows."""
    folder = ShardFolder(tmp_path, {})
    folder.append(record_fields([(0, raw("ann", "x", "y"), found(7)), (2, raw("bob", "ö"), found(8))]))
    folder.append(record_fields([(3, raw("ann", "z"), found(9)), (5, raw("cy", "y", "w", "x"), found(10))]))
    return RecordedPortraits(folder, folder.open(), np.array([3, 0, 1]))


def test_recorded_rows_in_any_order(recorded: RecordedPortraits):
    assert len(recorded) == 3
    assert list(recorded.names) == ["cy", "ann", "bob"]
    assert recorded.identity.tolist() == [text_hash(name) for name in ("cy", "ann", "bob")]
    assert [[c.text for c in row] for row in recorded.captions] == [["y", "w", "x"], ["x", "y"], ["ö"]]
    assert recorded.caption_start.tolist() == [0, 3, 5, 6]
    assert recorded.caption_rows.tolist() == [4, 5, 6, 0, 1, 2]
    assert recorded.words.tolist() == [text_hash(text) for text in ("y", "w", "x", "x", "y", "ö")]
    assert recorded.pictures.tolist() == [10, 7, 8]


def test_every_source_gives_the_whole_protocol(recorded: RecordedPortraits, tiny_dataset: Path):
    arrays = load_arrays(tiny_dataset, "train")
    members = [name for name, value in vars(Portraits).items() if isinstance(value, property)]
    assert {"identity", "captions", "names", "words", "content_hash", "regions"} <= set(members)
    for portraits in (recorded, arrays):
        for name in members:
            getattr(portraits, name)
        count = len(portraits)
        assert len(portraits.identity) == len(portraits.captions) == len(portraits.names) == count
        assert portraits.caption_start[-1] == len(portraits.words)
        assert np.diff(portraits.caption_start).tolist() == [len(row) for row in portraits.captions]
