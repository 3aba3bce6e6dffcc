"""Tables and cards of strangers that would end the program, or stand for far more than they say."""

import json
import re
from pathlib import Path

import pytest

from faceclip.data.cells import RejectedRecord
from faceclip.data.declared_files import check_card
from faceclip.data.mapping import DataConfig, RowMapping
from faceclip.data.sources import open_source
from faceclip.errors import DataError

CARD = "---\nconfigs:\n- config_name: default\n  data_files: {}\n{}\n---\n"
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))


@pytest.mark.parametrize(
    "text",
    [
        CARD.format("a.jsonl", MERGES),
        CARD.format("&a [*a]", ""),
        *(CARD.format("a.jsonl", f"z: {value}") for value in ("!!bool x", "!!int ''", "!!timestamp x", "[" * 5000)),
    ],
    ids=["merges", "itself", "bool", "int", "timestamp", "deep"],
)
@pytest.mark.timeout(60)
def test_cards_that_stand_for_far_more_than_they_say(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(DataError, match=r"README\.md: "):
        check_card(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "---\nconfigs:\n- config_name: default\n  <<: {data_files: a.jsonl}\n  <<: {data_files: ../b.jsonl}\n---\n",
        "\n" + CARD.format("../b.jsonl", ""),
        "---\ndescription: |\n  ---\nconfigs:\n- config_name: default\n  data_files: ../b.jsonl\n---\n",
    ],
    ids=["two merges", "after an empty line", "a line like the end"],
)
def test_cards_that_hide_what_they_name(tmp_path: Path, text: str) -> None:
    """A card is looked for and read as `datasets` does it, and what two readers read differently is rejected."""
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(DataError, match=rf"README\.md.*(<<|{re.escape('../b.jsonl')})"):
        check_card(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("a.json", text) for text in ("", "null", "[null]", '[null, {"a": 1}]', "null\n{}", '{"a": 1}\n null\n')),
        ("a.jsonl", "null"),
        ("a.csv", "\0" * 100),
    ],
)
def test_tables_at_which_readers_end_the_program_or_raise(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        list(open_source(DataConfig(path=str(tmp_path / name)), "train", tmp_path / "memo").rows(0))


@pytest.mark.parametrize("name", ["dataset_infos.json", "dataset_dict.json", "state.json"])
def test_descriptions_that_nest_without_end(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "a", "identity": "1"}\n')
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(DataError, match=str(tmp_path)):
        list(open_source(DataConfig(path=str(tmp_path)), "train", tmp_path / "memo").rows(0))


def rows_of(path: Path) -> list[dict]:
    return list(open_source(DataConfig(path=str(path)), "train", path.parent / "memo").rows(0))


def test_cells_of_several_kinds_are_read_as_they_are(tmp_path: Path) -> None:
    rows: list[dict] = [
        {"caption": "a man", "identity": "007", "both": [["a", ["b"]], "c"]},
        {"caption": ["a", "b"], "identity": "null", "both": [{"text": "d"}]},
        {"caption": None, "identity": "Ann", "both": None},
    ]
    numbered = {"caption": "a", "identity": 5, "both": None}  # the column of people holds numbers, too
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, numbered]))
    assert [{name: row[name] for name in rows[0]} for row in rows_of(tmp_path / "a.jsonl")[:-1]] == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption,identity\n0.png,a,1,x\n1.png,b,2,y\n", r"a\.csv cannot be read .*saw 4"),
        ("image,caption,caption,identity\n0.png,a,b,1\n", r"a\.csv has two columns 'caption'"),
    ],
)
def test_tables_whose_cells_would_move_to_other_columns(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / "a.csv")


@pytest.mark.parametrize("number", ["123456789012345678901234567890", "Infinity", "NaN"])
def test_rounded_numbers_are_nobody(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"image": "0.png", "caption": "a", "identity": {number}}}\n')
    source = open_source(DataConfig(path=str(tmp_path / "a.jsonl")), "train", tmp_path / "memo")
    mapping = RowMapping(DataConfig(path=str(tmp_path)), source.layout, source.columns, source.name)
    with pytest.raises(RejectedRecord) as caught:
        mapping.read(next(iter(source.rows(0))), 0)
    assert caught.value.reason == "no_identity"
