"""Scores against values computed here by hand or another way."""

import numpy as np
import pytest
import torch

from eval.generation.judging import Judges, Scores, compare, embed_faces, embed_references, judge_pictures, summarize
from eval.generation.page import check_criteria
from eval.generation.plan import Job
from eval.judges.networks import Judge, SecondRecognizer
from faceclip.data.arrays import load_arrays
from faceclip.encoder import FaceCLIP
from faceclip.faces.batches import FacePoints


def make_scores(similarity, pose, prompt, found=(True, True, True, True)) -> Scores:
    found, similarity = np.array(found), np.array(similarity, dtype=float)
    counted = np.where(found, similarity, 0)
    return Scores(
        identity=np.array([1, 1, 2, 2]),
        found=found,
        similarity={"recognizer": counted, "second recognizer": counted},
        raw_similarity={"recognizer": similarity, "second recognizer": similarity},
        recognized={"recognizer": counted > 0.5, "second recognizer": counted > 0.5},
        pose_error=np.array(pose, dtype=float),
        yaw_error=np.array(pose, dtype=float),
        prompt={name: np.array(prompt, dtype=float) for name in ("all", "hair_color", "glasses", "hat", "beard")}
        | {"expression": np.full(4, np.nan)},
        judged={},
        frechet=1.0,
    )


TEXT = make_scores([0.1, 0.1, 0.1, 0.1], [20, 20, 20, 20], [1, 1, 1, 1])
JOINT = make_scores([0.4, 0.5, 0.6, 0.5], [18, 20, 22, 20], [1, 1, 1, 0.9])
SHADING = make_scores([0.4, 0.5, 0.6, 0.5], [4, 6, 5, 5], [1, 1, 0.8, 0.8])


def test_undetected_faces_lower_the_mean():
    scores = make_scores([0.8, 0.8, 0.8, 0.8], [1, 1, 1, 1], [1, 1, 1, np.nan], found=(True, False, True, True))
    summary = summarize(scores)
    assert summary["similarity, recognizer"].value == pytest.approx(0.6)
    assert summary["similarity without detection, recognizer"].value == pytest.approx(0.8)
    assert summary["faces found"].value == 0.75
    assert summary["prompt accuracy, all"].count == 3  # a prompt that names nothing judged does not count
    assert np.isnan(summary["prompt accuracy, expression"].value)


def test_comparisons_are_paired():
    difference = compare(JOINT, TEXT)
    assert difference["similarity, recognizer"].value == pytest.approx(0.4)
    assert difference["prompt accuracy, all"].value == pytest.approx(-0.025)
    # each attribute has a difference of its own, and one that no prompt names none
    assert difference["prompt accuracy, beard"].value == pytest.approx(-0.025)
    assert np.isnan(difference["prompt accuracy, expression"].value)
    assert difference["prompt accuracy, expression"].count == 0
    assert compare(SHADING, JOINT)["pose error − half the other's (°)"].value == pytest.approx(5 - 10)


def test_criteria_by_hand():
    outcome = {text: met for text, _, met in check_criteria({"text": TEXT, "joint": JOINT, "shading": SHADING})}
    assert outcome["joint beats text only on similarity by the recognizer"] is True
    # .025 lost on average, but .05 by the one of two people whom the interval may consist of
    assert outcome["joint loses at most 0.03 of prompt accuracy"] is False
    assert outcome["shading loses at most 0.03 of prompt accuracy"] is False  # loses .1
    assert outcome["shading at least halves the pose error of joint"] is True
    worse = make_scores([0.1, 0.0, 0.1, 0.1], [11, 11, 11, 11], [0.98, 0.98, 0.98, 0.98])
    outcome = {text: met for text, _, met in check_criteria({"text": TEXT, "joint": JOINT, "shading": worse})}
    assert outcome["shading beats text only on similarity by the recognizer"] is False
    assert outcome["shading at least halves the pose error of joint"] is False  # 11 is more than half of 20
    assert outcome["shading loses at most 0.03 of prompt accuracy"] is True
    half = make_scores([0.1, 0.0, 0.1, 0.1], [4, 4, 13, 13], [1, 1, 1, 1])
    outcome = {text: met for text, _, met in check_criteria({"text": TEXT, "joint": JOINT, "shading": half})}
    assert outcome["shading at least halves the pose error of joint"] is False  # 8.5 on average, 13 with one of two


@pytest.fixture(scope="module")
def judges(joint_export, judge_exports) -> Judges:
    return Judges(
        judge=Judge.from_pretrained(judge_exports[0]).eval(),
        recognizer=FaceCLIP.from_pretrained(joint_export).face_encoder.eval(),
        second=SecondRecognizer.from_pretrained(judge_exports[1]).eval(),
    )


def test_the_reference_itself_is_recognized(judges, tiny_dataset):
    arrays = load_arrays(tiny_dataset, "train")
    references = embed_references(judges, arrays)
    assert all(np.allclose(np.linalg.norm(v, axis=1), 1, atol=1e-5) for v in references.portraits.values())
    rows = np.flatnonzero(arrays.index == 0)
    truth = FacePoints(landmarks=np.asarray(arrays.landmarks_5)[rows], found=np.ones(len(rows), dtype=bool))
    for name, (embed, size) in judges.embedders().items():
        again = embed_faces(embed, size, np.asarray(arrays.images)[rows], truth)
        np.testing.assert_allclose(again, references.gallery[name], atol=1e-5)


def test_blank_pictures_count_as_undetected(judges, tiny_dataset):
    arrays = load_arrays(tiny_dataset, "train")
    jobs = [Job(reference=row, prompt="", names={"hat": "cap"}, seed=row) for row in range(4)]
    blank = np.full((4, 64, 64, 3), 127, dtype=np.uint8)
    references = embed_references(judges, arrays)
    scores = judge_pictures(judges, blank, jobs, arrays, references)
    assert not scores.found.any()
    assert all((values == 0).all() for values in scores.similarity.values())
    assert all((values == 0).all() for values in scores.recognized.values())
    with torch.no_grad():
        seen = judges.judge(torch.full((1, 3, 64, 64), 127 / 255))
    pose = seen.pose.numpy()
    expected = np.abs(pose - np.asarray(arrays.pose)[:4]).mean(axis=1)
    np.testing.assert_allclose(scores.pose_error, expected, atol=1e-3)
    # Four equal pictures have no spread: what is left is the spread of the portraits and the distance of the means.
    portraits = references.features.astype(np.float64)
    apart = np.square(seen.features[0].numpy() - portraits.mean(axis=0)).sum()
    assert scores.frechet == pytest.approx(apart + portraits.var(axis=0, ddof=1).sum(), rel=1e-3)
