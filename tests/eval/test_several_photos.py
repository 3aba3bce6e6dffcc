"""More photos of a person, by hand and by the command."""

import json

import numpy as np
import pytest

from eval.several_photos import choose_people, embedding_curve, main, subsets, summary
from faceclip.errors import ConfigError


def test_two_noisy_photos_are_nearer_to_a_third_than_one():
    """Unit vectors of ten people with much noise: averaging must take some of it away, whatever the noise is."""
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(10), 8)
    people = rng.normal(size=(10, 32))[identity]
    vectors = (people + 1.5 * rng.normal(size=people.shape)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = choose_people(identity, people=10, most=4, seed=0)
    curve = embedding_curve(vectors, chosen, 4)
    means = [curve[count]["similarity"].mean() for count in (1, 2, 3, 4)]
    assert means == sorted(means) and means[1] > means[0] + 0.03
    figures = summary(curve, chosen)
    assert figures["similarity, 2 − 1"].low > 0 and figures["similarity, 1 photo"].value == pytest.approx(means[0])
    by_hand = np.mean([vectors[row] @ vectors[out] for row in chosen[0].references for out in chosen[0].held_out])
    assert curve[1]["similarity"][0] == pytest.approx(by_hand, abs=1e-6)


def test_references_are_never_held_out():
    identity = np.array([5, 5, 5, 7, 7, 9, 9, 9, 9])
    chosen = choose_people(identity, people=2, most=2, seed=3)
    assert [person.identity for person in chosen] == [5, 9]
    for person in chosen:
        rows = np.concatenate([person.references, person.held_out])
        assert sorted(rows) == np.flatnonzero(identity == person.identity).tolist() and len(person.references) == 2
    assert [group.tolist() for group in subsets(np.array([1, 2, 3]), 2)] == [[1, 2], [2, 3], [3, 1]]
    assert [group.tolist() for group in subsets(np.array([1, 2, 3]), 3)] == [[1, 2, 3]]
    with pytest.raises(ConfigError, match="people=3"):
        choose_people(identity, people=3, most=2, seed=3)


def test_the_command_measures_embeddings_and_pictures(tiny_dataset, pipeline_export, judge_exports, tmp_path, capsys):
    judge, second = judge_exports
    words = ["--data", str(tiny_dataset), "--people", "2", "--most", "2", "--judge", str(judge)]
    words += ["--second-recognizer", str(second), "--size", "64", "--out", str(tmp_path / "figures.json")]
    assert main([*words, "--model", str(pipeline_export), "--pictures", "2", "--steps", "1"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("embeddings, recognizer: similarity", "embeddings, second recognizer: rank-1"):
        for which in ("1 photo", "2 photos", "2 − 1"):
            assert -1 <= figures[f"{name}, {which}"]["value"] <= 1
    assert -1 <= figures["pictures: similarity, recognizer, 2 photos"]["value"] <= 1
    for wrong in (["--most", "1"], ["--people", "900"], ["--pictures", "1"]):
        assert main([*words, *wrong]) == 2
        assert wrong[0].strip("-") in capsys.readouterr().err
