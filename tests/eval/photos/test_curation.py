"""`python -m eval.photos.curation`: which photos get faults, what is counted, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from eval.photos.curation import GOOD, CurationConfig, main, plant
from eval.photos.planted import COPIES, FAULTS
from faceclip.errors import ConfigError, EmptyDatasetError
from tests.faceclip.data.curate.pictures import save, scene

GOODS = 6


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of one colour each, from which their number can be read in every picture that keeps the pixels."""
    root = tmp_path_factory.mktemp("planted") / "photos"
    for number in range(12):
        picture = scene(number, 96)
        picture[:8, :8] = 20 * number
        save(root / str(number // 2) / f"{number}.png", picture)
    return root


def words(photos, work, **changes) -> CurationConfig:
    return CurationConfig(photos=photos, work=work, **{"each": 3, "good": GOODS, "seed": 1} | changes)


def numbers(folder) -> set[int]:
    """Which photos the pictures of a folder are of."""
    return {round(np.asarray(Image.open(file))[:4, :4].mean() / 20) for file in folder.iterdir()}


@pytest.fixture(scope="module")
def planted(photos, tmp_path_factory):
    work = tmp_path_factory.mktemp("planted") / "work"
    plant(words(photos, work))
    return work


def test_faults_are_planted_in_other_photos_than_the_good_ones(planted):
    pictures = planted / "pictures"
    good = numbers(pictures / GOOD)
    assert len(good) == GOODS
    assert {folder.name for folder in pictures.iterdir()} == {GOOD, *FAULTS, *COPIES}
    assert all(len(list((pictures / kind).iterdir())) == 3 for kind in (*FAULTS, *COPIES))
    for kind in ("grey", "long", "captioned"):  # which keep the corner
        assert len(numbers(pictures / kind)) == 3 and not numbers(pictures / kind) & good
    assert numbers(pictures / "compressed") <= good and numbers(pictures / "resized") <= good


def test_a_group_is_of_different_photos(planted):
    for file in (planted / "pictures" / "group").iterdir():
        picture = np.asarray(Image.open(file)).astype(int)
        height, width = picture.shape[0] // 96, picture.shape[1] // 96
        if height == 2:
            corners = [picture[y * 96 : y * 96 + 8, x * 96 : x * 96 + 8].mean() for y in range(2) for x in range(2)]
            assert len(set(corners)) == 4
        else:
            assert width == 1 and (picture[:, :72] != picture[:, 72:144]).any()


def test_the_command_counts_by_kind(photos, tmp_path, capsys):
    given = [f"photos={photos}", f"work={tmp_path / 'work'}", "each=2", f"good={GOODS}", "keep.min_side=80"]
    given += ['measures=["size","color","exposure","blur","hash"]']
    assert main(given) == 0
    figures = json.loads((tmp_path / "work" / "figures.json").read_text())
    kinds = figures["kinds"]
    assert {kind: part["pictures"] for kind, part in kinds.items()} == {GOOD: GOODS} | dict.fromkeys(
        (*FAULTS, *COPIES), 2
    )
    for kind in ("grey", "long", "dark", "compressed"):
        assert kinds[kind]["dropped"] == 1
    assert kinds["grey"]["as_meant"] == 1 and kinds[GOOD]["dropped"] == 0
    assert figures["rules"]["grey"]["of_good"] == 0 and figures["all"]["good_dropped"] == 0
    capsys.readouterr()
    assert main([*given, "keep.min_color=null"]) == 0  # other thresholds: the same pictures
    assert main([*given, "seed=5"]) == 2
    assert "seed" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"seed": 2}, {"good": 5}, {"each": 2}])
def test_pictures_of_other_words_are_not_taken(changes, planted, photos):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        plant(words(photos, planted, **changes))


def test_folders_that_do_not_fit(photos, tmp_path):
    with pytest.raises(ConfigError, match="work="):
        words(photos, photos / "work")
    save(tmp_path / "work" / "pictures" / "a.png", scene(0))
    with pytest.raises(ConfigError, match="work="):
        plant(words(photos, tmp_path / "work"))
    with pytest.raises(EmptyDatasetError, match="good=9"):
        plant(words(photos, tmp_path / "other", good=9))
