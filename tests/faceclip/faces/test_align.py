"""Alignment against hand-computed maps, insightface's own crop, and finite differences."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from insightface.utils.face_align import norm_crop

from faceclip.errors import BadLandmarksError
from faceclip.faces.align import (
    ARCFACE_TEMPLATE_112,
    align_face,
    align_tensor,
    apply_affine,
    check_landmarks,
    crop_side,
    encoder_crop,
    invert_affine,
    similarity_between,
    similarity_transform,
    template,
    template_misfit,
)


def test_template_at_448_is_four_times_the_published_one():
    np.testing.assert_allclose(template(448), ARCFACE_TEMPLATE_112 * 4, atol=1e-4)


def test_template_of_smaller_crop_is_where_the_resized_crop_has_it():
    # Resizing 448 → 112 with align_corners=False moves x to (x + .5) / 4 − .5.
    np.testing.assert_allclose(template(112), ARCFACE_TEMPLATE_112 - 0.375, atol=1e-4)
    np.testing.assert_allclose(template(112, reference_size=112), ARCFACE_TEMPLATE_112, atol=1e-4)


def test_a_wider_view_has_the_same_middle():
    # Twice as wide: 56 px hold what 28 px did, in the middle.
    points = template(112, view=2.0) + 0.5
    np.testing.assert_allclose(points - 56, (template(112) + 0.5 - 56) / 2, atol=1e-4)
    with pytest.raises(ValueError, match="view=0"):
        template(112, view=0)


def test_known_rotation_scale_and_shift_are_recovered():
    angle, scale, shift = np.deg2rad(30), 0.5, np.array([7.0, -3.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (template(448) - shift) @ rotation / scale  # so that scale · R · p + shift = template
    matrix = similarity_transform(torch.tensor(points, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(matrix[:, :2], scale * rotation, atol=1e-6)
    np.testing.assert_allclose(matrix[:, 2], shift, atol=1e-3)


def test_equals_umeyama_by_svd_on_noisy_points():
    rng = np.random.default_rng(0)
    points = template(448).astype(np.float64) * 0.3 + rng.normal(0, 5, (5, 2))
    target = template(448).astype(np.float64)
    source, goal = points - points.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(goal.T @ source)
    signs = np.diag([1.0, np.linalg.det(u) * np.linalg.det(vt)])
    linear = (np.trace(np.diag(singular) @ signs) / (source**2).sum()) * u @ signs @ vt
    matrix = similarity_transform(torch.tensor(points)).numpy()
    np.testing.assert_allclose(matrix[:, :2], linear, atol=1e-6)


def test_inverse_undoes_the_map():
    matrix = similarity_transform(torch.rand(3, 5, 2, dtype=torch.float64) * 100)
    points = torch.rand(3, 4, 2, dtype=torch.float64) * 100
    back = apply_affine(invert_affine(matrix), apply_affine(matrix, points))
    torch.testing.assert_close(back, points)


@pytest.fixture
def photo() -> np.ndarray:
    """Smooth random colors: interpolation differences of 1/32 px stay small."""
    noise = np.random.default_rng(1).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    return cv2.resize(noise, (200, 240), interpolation=cv2.INTER_CUBIC)


LANDMARKS = np.array([[70, 90], [128, 84], [104, 124], [80, 158], [132, 152]], dtype=np.float32)


@pytest.mark.parametrize("size", [112, 448])
def test_align_face_equals_insightface_norm_crop(photo, size):
    ours = align_face(photo, LANDMARKS, size, reference_size=size)
    theirs = norm_crop(photo, LANDMARKS, image_size=size)
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 2


@pytest.mark.parametrize("size", [72, 112, 448])
def test_align_tensor_equals_align_face(photo, size):
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    ours = align_tensor(image, torch.from_numpy(LANDMARKS)[None], size)[0].permute(1, 2, 0).numpy() * 255
    reference = align_face(photo, LANDMARKS, size).astype(np.float32)
    # Where the crop leaves the image, one sample row of the border may be on either side of the edge.
    assert np.quantile(np.abs(ours - reference), 0.99) < 3


def test_small_crop_shows_the_face_where_the_resized_canonical_crop_shows_it(photo):
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    landmarks = torch.from_numpy(LANDMARKS)[None]
    direct = align_tensor(image, landmarks, 112)
    canonical = align_tensor(image, landmarks, 448)
    resized = F.interpolate(canonical, size=(112, 112), mode="bilinear", align_corners=False)
    shifted = align_tensor(image, landmarks, 112, reference_size=112)
    inside = (slice(None), slice(None), slice(20, 90), slice(20, 90))
    error = (direct - resized)[inside].abs().mean()
    assert error < 0.25 * (shifted - resized)[inside].abs().mean()


def test_gradients_reach_images_and_landmarks():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 20, 20, requires_grad=True)
    landmarks = (torch.tensor(template(20)) + torch.rand(2, 5, 2)).requires_grad_()
    align_tensor(images, landmarks, 16).square().mean().backward()
    assert images.grad.abs().sum() > 0
    assert landmarks.grad.abs().sum() > 0 and landmarks.grad.isfinite().all()


def test_autocast_does_not_move_the_crop(photo):
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    landmarks = torch.from_numpy(LANDMARKS)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        crop = align_tensor(image, landmarks, 112)
    torch.testing.assert_close(crop, align_tensor(image, landmarks, 112))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(…, 5, 2\).*\(4, 2\)"):
        similarity_transform(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="uint8"):
        align_face(np.zeros((4, 4, 3), np.float32), LANDMARKS)


def test_a_large_face_is_reduced_by_means():
    """Noise of ten grey values in the photo must not stay in a crop of a sixteenth of its size."""
    rng = np.random.default_rng(0)
    noise = np.clip(128 + 10 * rng.standard_normal((1800, 1800, 3)), 0, 255).astype(np.uint8)
    large = template(112) * 14 + 100
    assert align_face(noise, large, 112).std() < 1.2
    # A face of the crop's own size is only moved.
    assert align_face(noise, template(112) + 700, 112).std() > 9


@pytest.mark.parametrize("side", [60, 300, 1500])
def test_the_crop_of_an_encoder_is_what_it_makes_of_the_canonical_one(side):
    rng = np.random.default_rng(0)
    photo = cv2.resize(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8), (side + 100, side + 100))
    points = template(112) * (side / 112) + 40
    canonical = torch.from_numpy(align_face(photo, points)).permute(2, 0, 1)[None] / 255
    seen = F.interpolate(canonical, (72, 72), mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    difference = np.abs(encoder_crop(photo, points, 72) - seen * 255)
    # A small face is cut directly, by places that OpenCV rounds to 1/32 px.
    assert difference.max() <= 0.51 if side > 144 else difference.mean() < 1.5


def test_a_wider_view_holds_the_crop_in_its_middle(photo):
    landmarks = template(112, view=1.6) + np.array([3.0, -2.0])
    wide, crop = align_face(photo, landmarks, 128, view=2.0).astype(int), align_face(photo, landmarks, 64)
    assert np.abs(wide[32:96, 32:96] - crop).mean() < 1  # OpenCV rounds places to 1/32 px
    assert np.abs(wide[32:96, 33:97] - crop).mean() > 4  # a shift by one pixel would be seen


def test_points_that_fall_together_give_a_finite_map():
    """As a network may predict at first: nothing to turn or scale by, and no gradient that is not a number."""
    points = torch.full((5, 2), 3.0, requires_grad=True)
    matrix = similarity_transform(points)
    torch.testing.assert_close(matrix[:, :2], torch.zeros(2, 2))
    torch.testing.assert_close(matrix[:, 2], torch.as_tensor(template(448)).mean(0))
    matrix.sum().backward()
    assert points.grad.isfinite().all()


def test_the_side_of_a_crop_and_the_misfit_of_points_by_hand():
    points = template(448).astype(np.float64)
    assert crop_side(points / 4 + 7) == pytest.approx(112, abs=1e-3)
    assert template_misfit(points / 4 + 7) == pytest.approx(0, abs=1e-6)
    # A pattern that no turn, scale or shift can make: corners of a square, moved in and out by turns.
    target = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    source = target + torch.tensor([[0.1, 0.1], [0.1, -0.1], [0.1, 0.1], [0.1, -0.1]], dtype=torch.float64)
    matrix = similarity_between(source, target)
    torch.testing.assert_close(matrix[:, :2], torch.eye(2, dtype=torch.float64) / 1.02, atol=1e-9, rtol=0)
    moved = points.copy()
    moved[2] += [0, 44.8]
    assert 0.02 < template_misfit(moved) < 0.0448  # a tenth of the side at one of five points, less what fitting takes
    assert template_misfit(moved * 0.3) == pytest.approx(template_misfit(moved), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "good"),
    [
        (lambda points: points, True),
        (lambda points: points - [104, 0], False),  # the middle left of the picture
        (lambda points: points - [-75, 0], False),
        (lambda points: points - [0, 123], False),
        (lambda points: points - [0, -90], False),
        (lambda points: points - [-50, -30], True),  # cut by the border
        (lambda points: points[[1, 0, 2, 4, 3]], False),
        (lambda points: np.concatenate([points[:4], [[500.0, 100.0]]]), False),
        (lambda points: (points - points.mean(0)) @ [[0, 1], [-1, 0]] + points.mean(0), True),  # a turn is no misfit
    ],
)
def test_landmarks_are_those_of_a_face_in_the_picture(change, good):
    points = change(LANDMARKS.astype(np.float64))
    if good:
        check_landmarks(points, 200, 160, "photo 3")
    else:
        with pytest.raises(BadLandmarksError, match="photo 3"):
            check_landmarks(points, 200, 160, "photo 3")


@pytest.mark.parametrize("center", [(150, 100), (10, 100), (80, 10), (80, 190)])
def test_a_large_face_may_leave_the_picture_by_its_size_and_no_further(center):
    points = ARCFACE_TEMPLATE_112 - ARCFACE_TEMPLATE_112.mean(axis=0)
    check_landmarks(9 * points + center, 200, 160, "photo 3")
    with pytest.raises(BadLandmarksError, match=r"^photo 3: .* outside of 160×200"):
        check_landmarks(11 * points + center, 200, 160, "photo 3")


def test_tensors_of_other_shapes_are_named():
    for images, landmarks in (((2, 3, 8, 8), (1, 5, 2)), ((3, 8, 8), (3, 5, 2)), ((2, 3, 8, 8), (2, 4, 2))):
        with pytest.raises(ValueError, match=str(landmarks[0])):
            align_tensor(torch.zeros(images), torch.zeros(landmarks), 8)
    for sizes in ({"size": 0}, {"size": 8, "reference_size": 0}, {"size": 8, "view": -1.0}):
        with pytest.raises(ValueError, match=r"size=.*reference_size=.*view="):
            template(**sizes)
    assert template(1).shape == template(8, reference_size=1).shape == (5, 2)


def test_a_crop_of_a_wide_picture_has_the_dtype_of_the_picture():
    """Width and height are not exchanged, and places are in 32 bits whatever the pixels are."""
    picture = torch.arange(12.0).view(1, 1, 1, 12).expand(1, 3, 6, 12) / 12
    landmarks = torch.as_tensor(template(6))[None] + torch.tensor([4.0, 0.0])
    crop = align_tensor(picture, landmarks, 6)
    torch.testing.assert_close(crop[0, 0, 3], picture[0, 0, 3, 4:10], atol=1e-5, rtol=0)
    assert align_tensor(picture.bfloat16(), landmarks, 6).dtype == torch.bfloat16
