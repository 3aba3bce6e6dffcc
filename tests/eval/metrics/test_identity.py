"""Similarities, copying and gallery places worked out by hand."""

import numpy as np
import pytest

from eval.metrics.identity import copy_paste_angle, copy_paste_chord, gallery_place, similarity
from faceclip.statistics import NEVER


def at(*degrees):
    """Vectors of the plane at these angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_an_undetected_face_is_zero_in_one_mean_and_missing_in_the_other():
    found = similarity(2 * at(0, 60, 10), at(60, 0, 10), np.array([True, True, False]))
    np.testing.assert_allclose(found.all, [0.5, 0.5, 0.0])
    np.testing.assert_allclose(found.detected, [0.5, 0.5, np.nan])


def test_copying_by_angles_goes_from_the_other_photo_to_the_reference():
    reference, target = at(0, 0, 0, 0), at(40, 40, 40, 0)
    np.testing.assert_allclose(copy_paste_angle(at(0, 40, 20, 7), reference, target), [1, -1, 0, 0], atol=1e-6)


def test_copying_by_chords_has_another_range():
    reference, target = at(0, 0, 0, 0), at(40, 40, 40, 0)
    found = copy_paste_chord(at(0, 40, 20, 7), reference, target)
    np.testing.assert_allclose(found, [1, 0, 0.5, 0.5], atol=2e-3)  # distances are at least √1e-6, as published
    chords = 2 * np.sin(np.radians([30, 10]) / 2)  # of a picture at 10° with the two photos
    expected = 0.5 * (1 + (chords[0] - chords[1]) / (2 * np.sin(np.radians(20))))
    assert copy_paste_chord(at(10), at(0), at(40))[0] == pytest.approx(expected)


def test_a_picture_finds_its_person_among_real_photos():
    gallery, people = at(0, 5, 90, 50), np.array([7, 7, 8, 9])
    faces, person, found = at(1, 80, 0), np.array([7, 7, 7]), np.array([True, True, False])
    place = gallery_place(faces, person, found, gallery, people)
    assert place.rank.tolist() == [1, 3, NEVER]
    np.testing.assert_allclose(place.precision, [1, (1 / 3 + 2 / 4) / 2, 0])
    out = np.zeros((3, 4), bool)
    out[0, :2] = [True, False]
    assert gallery_place(faces, person, found, gallery, people, out).precision[0] == 1


def test_equal_scores_count_against_the_picture():
    place = gallery_place(at(0), np.array([1]), np.array([True]), at(3, -3), np.array([1, 2]))
    assert place.rank.tolist() == [2]
