"""Frames of whole pictures: their shapes, what they show, and where the picture's points lie in them."""

import numpy as np
import pytest

from faceclip.data.frames import Framing, cut_frame, shapes


@pytest.mark.parametrize(("size", "step"), [(1024, 64), (64, 8), (512, 32)])
def test_shapes_are_as_large_as_the_square_and_fit_the_networks(size, step):
    found = shapes(size, step)
    assert (size, size) in found and len(found) >= 5
    for height, width in found:
        assert height % step == 0 and width % step == 0
        assert 0.7 * size**2 <= height * width <= size**2
        assert max(height, width) <= 2 * min(height, width)
        assert (width, height) in found


def picture(height: int, width: int) -> np.ndarray:
    """Each pixel says where it lies: x in red, y in green."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)


def framing(**changes) -> Framing:
    return Framing(**{"size": 64, "step": 8, "reach": 1.7, "whole": True, "min_side": 16} | changes)


@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 120), (150, 150), (60, 240)])
def test_a_whole_picture_keeps_its_shape_and_its_face(height, width):
    face = np.array([[width - 30, 20], [width - 20, 20], [width - 25, 25], [width - 29, 30], [width - 21, 30]], float)
    frame = cut_frame(picture(height, width), face, (0, 0, 10), framing())
    assert frame.picture.shape[:2] in shapes(64, 8)
    if 0.5 <= width / height <= 2:  # the window has the picture's shape, but for the step of the shapes
        _, _, wide, tall = frame.window
        assert wide * tall > 0.85 * height * width
    assert abs(frame.scale[0] / frame.scale[1] - 1) < 0.02
    placed = frame.points(face)
    for (x, y), (u, v) in zip(face, placed, strict=True):
        red, green, _ = frame.picture[round(float(v)), round(float(u))].astype(float)
        assert abs(red - x) <= 1.2 / frame.scale[0] + 1 and abs(green - y) <= 1.2 / frame.scale[1] + 1


def test_time_ids_say_where_the_frame_lies_in_the_scaled_picture():
    frame = cut_frame(picture(100, 250), np.full((5, 2), 240.0), (0, 0, 10), framing())
    tall, wide = frame.picture.shape[:2]
    left, top, width, height = frame.window
    assert (left + width, top, height) == (250, 0, 100)  # the face is at the right border
    assert frame.sizes.tolist() == [100, 250, 0, left * wide // width, tall, wide]


def test_a_square_frame_is_the_given_square():
    frame = cut_frame(picture(100, 200), np.zeros((5, 2)), (30, 10, 64), framing(whole=False))
    assert frame.window == (30, 10, 64, 64) and frame.picture.shape == (64, 64, 3)
    np.testing.assert_array_equal(frame.picture[..., 0], picture(100, 200)[10:74, 30:94, 0])
    np.testing.assert_allclose(frame.points(np.array([[30.0, 10.0]])), [[0, 0]], atol=1e-6)
