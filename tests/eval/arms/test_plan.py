"""Jobs are spread over people, and prompts do not contradict what the shading channel shows."""

import numpy as np
import pytest

from eval.arms.plan import ARMS, Job, first_people, plan_jobs, select_arms
from faceclip.data.arrays import load_arrays
from faceclip.errors import ConfigError, EmptyDatasetError
from faceclip.retrieval.labels import Description, Labels, labels_of
from faceclip.training.towers.labels import JUDGED


@pytest.fixture(scope="module")
def labels(tiny_dataset) -> Labels:
    return labels_of(load_arrays(tiny_dataset, "train"))


def test_jobs_are_even_over_people_and_repeatable(labels):
    jobs = plan_jobs(labels, 20, seed=4)
    assert jobs == plan_jobs(labels, 20, seed=4) != plan_jobs(labels, 20, seed=5)
    people, counts = np.unique([labels.identity[job.reference] for job in jobs], return_counts=True)
    assert len(people) == 8 and counts.max() - counts.min() <= 1
    assert len({job.seed for job in jobs}) == 20


def test_more_jobs_begin_with_the_same_ones(labels):
    assert plan_jobs(labels, 30)[:10] == plan_jobs(labels, 10)


def test_examples_show_each_person_once():
    jobs = [Job(reference=row, prompt="", names={}, seed=0) for row in (3, 2, 0, 1, 4)]
    identity = np.array([7, 7, 5, 5, 9])
    assert first_people(jobs, identity) == [0, 2, 4]  # people 5, 7 and 9
    assert first_people(jobs, identity, 2) == [0, 2]


def test_prompts_agree_with_the_reference_expression(labels):
    for job in plan_jobs(labels, 40):
        assert set(job.names) & set(JUDGED)
        wanted = job.names.get("expression")
        assert wanted is None or wanted == labels.attributes["expression"][job.reference]


def test_own_captions_are_never_the_prompt():
    def item(text: str) -> Description:
        return Description(text=text, kind="attributes", names={"hat": "cap"})

    labels = Labels(
        identity=np.array([1, 1, 2, 2]),
        index=np.array([0, 1, 0, 1]),
        attributes={"hat": np.array(["cap"] * 4)},
        descriptions=[[item("one")], [item("one")], [item("two")], [item("two")]],
    )
    for job in plan_jobs(labels, 20):
        assert job.prompt == {1: "two", 2: "one"}[int(labels.identity[job.reference])]
    alone = Labels(identity=np.array([1]), index=np.array([0]), attributes={}, descriptions=[[item("one")]])
    with pytest.raises(EmptyDatasetError, match=r"\btest split "):
        plan_jobs(alone, 1)


def test_arms_by_name():
    assert [arm.name for arm in select_arms("all, text")] == ["all", "text"]
    with pytest.raises(ConfigError, match="--arms texd"):
        select_arms("texd")
    assert not ARMS["text"].reference and ARMS["all"].counterpart == "identity"
