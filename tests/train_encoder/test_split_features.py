"""Who is in a split: persons, their pictures and captions, and which of them are asked for."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faceclip.data.mapping import ColumnsConfig
from faceclip.errors import DataError, EmptyDatasetError, TooManyBadRecordsError
from faceclip.retrieval.labels import fitting, portrait_labels
from faceclip.retrieval.queries import Query, queries_of
from tests.train_encoder.foreign import COLUMNS, config_of
from train_encoder.config import SamplingConfig
from train_encoder.features import load_features, main
from train_encoder.queries import QuerySource


def test_identities_missing_for_the_identity_mask(rows, towers, tower_arguments, tmp_path, capsys):
    table = pa.Table.from_pylist(rows).drop_columns(["who"])
    pq.write_table(table, tmp_path / "anonymous.parquet")
    arguments = [
        f"data.path={tmp_path / 'anonymous.parquet'}",
        "data.columns.image=photo",
        "data.columns.captions=words",
        *tower_arguments,
    ]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "no column 'identity' or 'person' for the identity" in error
    assert "data.columns.identity=NAME, or data.identity=none" in error
    empty = [row | {"who": None if number % 2 else row["who"]} for number, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(empty), tmp_path / "half.parquet")
    with pytest.raises(TooManyBadRecordsError, match=r"20 of 40 .*50\.0%.* no_identity 20.*report-.*\.json"):
        load_features(config_of(tmp_path / "half.parquet", validation_share=0.3), "train", towers, tmp_path / "c")


def test_rows_without_identities_are_asked_for_by_their_own_face(parquet, towers, tmp_path):
    columns = ColumnsConfig(image="photo", captions="words", landmarks="points")
    found = load_features(
        config_of(parquet, columns=columns, identity="none", validation_share=0.3), "train", towers, tmp_path / "cache"
    )
    assert found.single
    source = QuerySource(found, SamplingConfig(images=4))
    assert len(source) == len(found.portraits) < 40
    sample = source.get(5, np.random.default_rng(0))
    assert sample["face_tokens"].shape[0] == 1
    np.testing.assert_array_equal(sample["face_identity"], sample["answer_identity"])


def test_splits_divide_persons(parquet, towers, tmp_path):
    shared = config_of(parquet, validation_share=0.3)
    train, validation = (load_features(shared, split, towers, tmp_path / "c") for split in ("train", "validation"))
    assert not set(train.portraits.identity) & set(validation.portraits.identity)
    assert len(train.portraits) + len(validation.portraits) == 40
    folds = config_of(parquet, columns=ColumnsConfig(**(vars(COLUMNS) | {"split": "fold"})), train="a", validation="b")
    parts = [load_features(folds, split, towers, tmp_path / "c") for split in ("train", "validation")]
    assert [len(part.portraits) for part in parts] == [32, 8]
    assert load_features(folds, "validation", towers, tmp_path / "c").portraits.names[0] == "person 8"
    wrong = config_of(parquet, columns=folds.columns, train="z", validation="b")
    with pytest.raises(EmptyDatasetError, match=r"\btrain: .*data\.columns\.split"):
        load_features(wrong, "train", towers, tmp_path / "c")


def test_persons_with_few_pictures(rows, towers, tmp_path):
    pq.write_table(pa.Table.from_pylist(rows[:9]), tmp_path / "few.parquet")  # two persons with 4 pictures, one with 1
    kept = load_features(config_of(tmp_path / "few.parquet"), "train", towers, tmp_path / "c", pictures=4)
    with pytest.raises(DataError, match=r"1 persons \(the first: 'person 2'\).*data\.few_pictures=drop"):
        QuerySource(kept, SamplingConfig(images=4))
    dropped = config_of(tmp_path / "few.parquet", few_pictures="drop")
    assert len(load_features(dropped, "train", towers, tmp_path / "c", pictures=4).portraits) == 8


def test_pictures_that_have_the_chosen_caption_are_right(rows, towers, tmp_path):
    words = [["first", "shared"], ["other", "shared"], ["first"], ["lone"], ["shared"]]  # the last is another person
    table = [row | {"words": texts} for row, texts in zip(rows[:5], words, strict=True)]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "five.parquet")
    found = load_features(config_of(tmp_path / "five.parquet"), "train", towers, tmp_path / "c")
    labels = portrait_labels(found.portraits)
    assert fitting(labels, 0, 0).tolist() == [True, False, True, False, False]
    assert fitting(labels, 0, 1).tolist() == [True, True, False, False, True]  # whomever they show
    assert fitting(labels, 3, 0).tolist() == [False, False, False, True, False]
    queries = queries_of(
        labels, "face+text", [Query(row=0, face=2, number=1), Query(row=0, face=0, number=0, stays=True)]
    )
    assert queries.relevant.tolist() == [[True, True, False, False, False], [True, False, True, False, False]]


def test_long_captions_are_counted(rows, towers, tmp_path):
    long = [row | {"words": [" ".join(["face"] * (75 + number))]} for number, row in enumerate(rows[:4])]
    pq.write_table(pa.Table.from_pylist(long), tmp_path / "long.parquet")
    load_features(config_of(tmp_path / "long.parquet"), "train", towers, tmp_path / "c")
    (report,) = (tmp_path / "c").glob("train-report-*.json")
    assert json.loads(report.read_text())["captions_cut"] == 3  # 75 words, start and end fill the 77 places
