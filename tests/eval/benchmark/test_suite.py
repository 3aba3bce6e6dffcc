"""Suites: which pictures follow from a file, and what is refused or counted."""

import numpy as np
import pytest
from PIL import Image

from eval.benchmark.references import photo_files, read_groups, read_photos
from eval.benchmark.suite import PromptSettings, build_suite, read_prompts, read_suite
from faceclip.data.arrays import load_arrays
from faceclip.errors import ConfigError, DataError, EmptyDatasetError, NoFaceError

YAML = "name: a\nlicence: CC0\norigin: here\nreferences: {kind: portraits, folder: photos}\nprompts: {file: p.txt}\n"


def test_every_reference_is_drawn_with_every_prompt_and_its_own_seed(suite, tiny_dataset):
    people = np.unique(load_arrays(tiny_dataset, "test").identity)
    assert len(suite.references.chosen) == len(people) == 2 and len(suite.prompts) == 3
    assert len(suite.jobs) == 6 and len({job.seed for job in suite.jobs}) == 6
    assert len({job.key for job in suite.jobs}) == 6
    groups = [photo.groups for photo in suite.references.photos]
    assert all(set(found) == {"skin tone", "age lines"} for found in groups) and groups[0] == groups[1]
    held = suite.references.held
    assert len(held) == 2 and not set(held.values()) & set(suite.references.chosen)


def test_prompts_take_turns(settings):
    turns = build_suite(settings(prompts=PromptSettings(captions=3, per_reference=2), pictures=2))
    assert [job.prompt for job in turns.jobs] == [0, 0, 1, 1, 2, 2, 0, 0]
    assert turns.plan_hash != build_suite(settings(pictures=2)).plan_hash
    assert (
        turns.plan_hash
        == build_suite(settings(prompts=PromptSettings(captions=3, per_reference=2), pictures=2)).plan_hash
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"licence": " "}, "licence"),
        ({"origin": ""}, "origin"),
        ({"pictures": 0}, "pictures"),
        ({"failures": 1.0}, "failures"),
        ({"size": (4, 64)}, "size"),
        ({"metrics": ["facesim"]}, "facesim/all@1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, change, key):
    with pytest.raises(ConfigError, match=key):
        build_suite(settings(**change))


def test_empty_lines_of_prompts_are_counted_and_categories_read(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("style\ta pencil drawing\n\n a plain prompt \n\t\n")
    prompts, empty = read_prompts(path)
    assert [(prompt.category, prompt.text) for prompt in prompts] == [
        ("style", "a pencil drawing"),
        ("", "a plain prompt"),
    ]
    assert empty == 2
    path.write_text("\n\n")
    with pytest.raises(EmptyDatasetError, match=r"prompts\.txt"):
        read_prompts(path)
    path.write_text("x" * 3000)
    with pytest.raises(DataError, match="line 1"):
        read_prompts(path)


@pytest.fixture
def photos(tmp_path, tiny_dataset):
    """A folder of one file per person: two renders of faces that the detector finds, and a wall."""
    arrays = load_arrays(tiny_dataset, "test")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, row in (("ann", 0), ("bob", 4)):
        Image.fromarray(np.asarray(arrays.images[row])).resize((256, 256)).save(folder / f"{name}.png")
    Image.new("RGB", (64, 64), "grey").save(folder / "wall.png")
    return folder


def test_a_suite_of_photographs_from_a_file(photos, tmp_path):
    (tmp_path / "suite.yaml").write_text(YAML)
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    suite = read_suite(tmp_path / "suite.yaml")
    assert [photo.person for photo in suite.references.photos] == ["ann", "bob"]
    assert suite.references.without_face == ("wall.png",) and len(suite.jobs) == 4
    assert suite.references.held == {} and not suite.references.rendered
    (tmp_path / "suite.yaml").write_text(YAML.replace("licence: CC0\n", ""))
    with pytest.raises(ConfigError, match="licence"):
        read_suite(tmp_path / "suite.yaml")


def test_photographs_without_faces_and_people_of_one_name_are_refused(photos):
    with pytest.raises(NoFaceError, match="1 photos"):
        read_photos([("wall", photos / "wall.png")], each=1)
    (photos / "Ann.png").write_bytes((photos / "ann.png").read_bytes())
    with pytest.raises(DataError, match=r"(?i)ann\.png and ann\.png"):
        photo_files(photos, by_person=False)
    with pytest.raises(EmptyDatasetError, match="PERSON/PHOTO"):
        photo_files(photos, by_person=True)
    with pytest.raises(DataError, match="absent"):
        photo_files(photos / "absent", by_person=True)


def test_groups_come_from_a_table_with_one_line_per_person(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("person,age\nann,young\nbob,old\n")
    assert read_groups(path) == {"ann": {"age": "young"}, "bob": {"age": "old"}}
    for text, place in (("person,age\nann,young\nann,old\n", "line 3"), ("person,age\nann\n", "line 2")):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"groups\.csv, {place}"):
            read_groups(path)
