"""Facts of data sets and cards: damaged files are named, and photos are spoken of as photos."""

import json
import re
from pathlib import Path

import pytest

from faceclip.errors import DataError
from faceclip.training.towers.card import Card, card_data, dataset_facts, write_card
from faceclip.training.towers.command import renew_cards

COUNTS = {"train": {"images": 8, "identities": 2}}
DAMAGES = [b"\xff\xfe\x80", b"[" * 100_000, b"3", b"[]"]


@pytest.mark.parametrize("content", [*DAMAGES, b'{"request": {}}', b'{"request": {}, "counts": [1]}'])
def test_damaged_facts_of_a_data_set_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset\.json"):
        dataset_facts(tmp_path)


@pytest.mark.parametrize("content", [*DAMAGES, b'{"command": "", "data": [], "split": "test", "metrics": {}}'])
def test_a_damaged_card_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(DataError, match=r"metrics\.json"):
        card_data(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json.*generate the data set"):
        dataset_facts(tmp_path)
    with pytest.raises(DataError, match=r"metrics\.json.*export of a tower command"):
        card_data(tmp_path)


def test_a_card_of_other_photos_speaks_of_photos(tmp_path: Path) -> None:
    for name, files in (("first", ["a"]), ("second", ["b"])):
        (tmp_path / name).mkdir()
        about = {"request": {}, "counts": COUNTS, "files": files}
        (tmp_path / name / "dataset.json").write_text(json.dumps(about))
    facts, folder = dataset_facts(tmp_path / "first"), tmp_path / "export"
    folder.mkdir()
    card = Card(title="T", summary="S.", command="python -m it", seed=1, steps=2, samples=3, data=facts)
    write_card(folder, card, {"figure": 0.5})
    assert card_data(folder) == facts
    with pytest.raises(DataError, match="8 photographs of 2 people") as caught:
        renew_cards([folder], tmp_path / "second", lambda: {"figure": 0.7})
    message = str(caught.value)
    assert "faceclip.people" not in message and "None" not in message
    assert len(set(re.findall(r"key (\w+)", message))) == 2
    assert renew_cards([folder], tmp_path / "first", lambda: {"figure": 0.7}) == {"figure": 0.7}
    assert "| figure | 0.700 |" in (folder / "README.md").read_text()
