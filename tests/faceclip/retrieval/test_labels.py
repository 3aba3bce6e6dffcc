"""Labels of data sets: values that captions name, and which portrait of a person is the frontal one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.data.records import Caption, caption_to_dict
from faceclip.errors import EmptyDatasetError
from faceclip.retrieval.labels import Labels, labels_of


@pytest.fixture(scope="module")
def arrays(tiny_dataset: Path) -> FaceArrays:
    return load_arrays(tiny_dataset, "train")


def test_descriptions_hold_the_values_of_their_own_portrait(arrays: FaceArrays) -> None:
    labels = labels_of(arrays)
    assert len(labels) == len(labels.descriptions) == len(arrays)
    np.testing.assert_array_equal(labels.index, arrays.index)
    named = 0
    for row, captions in enumerate(arrays.captions):
        for item, caption in zip(labels.descriptions[row], captions, strict=True):
            assert (item.text, item.kind) == (caption.text, caption.kind)
            assert item.names == {name: arrays.seen_values[name][row] for name in caption.named}
            named += len(item.names)
    assert named > len(arrays)


def test_the_frontal_photo_of_a_person_is_the_least_turned_one(arrays: FaceArrays) -> None:
    texts = [json.dumps([caption_to_dict(Caption(text=f"photo {row}", kind="free"))]) for row in range(5)]
    photos = replace(
        arrays,
        identity=np.array([9, 4, 9, 4, 9]),
        # Yaw, pitch and roll: the roll does not count, the sign neither.
        pose=np.array([[10, 10, 0], [3, 0, 90], [-30, 0, 0], [2, 2, 0], [0, -5, 80]], np.float32),
        index=np.arange(5),
        attributes={},
        vocabularies={},
        regions=None,
        texts=texts,
    )
    labels = labels_of(photos)
    assert labels.index.tolist() == [1, 0, 2, 1, 0]
    assert [row[0].text for row in labels.descriptions] == [f"photo {row}" for row in range(5)]


def test_one_portrait_is_enough_and_none_is_named() -> None:
    assert len(Labels(identity=np.array([1]), attributes={}, descriptions=[[]])) == 1
    with pytest.raises(EmptyDatasetError, match=r"\btest split "):
        Labels(identity=np.array([], int), attributes={}, descriptions=[])
