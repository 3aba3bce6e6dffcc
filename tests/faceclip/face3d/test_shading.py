"""The shading map pixel by pixel: where the face is, what it hides, and how its grey is made."""

import numpy as np
import pytest

from faceclip.face3d import shading
from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.light import ambient_light, directional_light, shade, shade_pixels
from faceclip.face3d.model import default_head
from faceclip.face3d.rasterizer import interpolate, rasterize, vertex_normals
from faceclip.face3d.shading import shade_face, shading_map

SHAPE, NEUTRAL = np.zeros(48), np.zeros(21)


def ambient(level: float) -> np.ndarray:
    return ambient_light(np.full(3, level))


def test_inside_the_face_the_grey_is_albedo_times_light() -> None:
    for level, grey in ((0.5, 90), (1.0, 180), (1.2, 216), (2.0, 255)):  # 180 per unit of light, white at most
        found = shading_map(SHAPE, NEUTRAL, (0, 0, 0), Camera(), ambient(level), 96)
        assert found[48, 48].tolist() == [grey] * 3 and found.max() == grey
    coloured = shading_map(SHAPE, NEUTRAL, (0, 0, 0), Camera(), ambient_light(np.array([0.5, 1.0, 0.25])), 96)
    assert coloured[48, 48].tolist() == [90, 180, 45]


@pytest.mark.parametrize(("direction", "axis", "sign"), [((1, 0, 0.3), 1, 1), ((0, 1, 0.3), 0, -1)])
def test_light_from_one_side_shades_that_side(direction, axis: int, sign: int) -> None:
    """x is image-right; y is up, while rows go down."""
    found = shading_map(SHAPE, NEUTRAL, (0, 0, 0), Camera(), directional_light(np.array(direction), np.ones(3)), 96)
    lit = found[..., 0].astype(float)
    places = np.indices((96, 96))[axis]
    face = shading_map(SHAPE, NEUTRAL, (0, 0, 0), Camera(), ambient(1.0), 96)[..., 0] > 0
    assert sign * ((lit * places).sum() / lit.sum() - places[face].mean()) > 3


def test_a_lamp_before_the_face_shades_what_faces_it_by_its_color() -> None:
    """Nine harmonics of a cosine are 17/16 where the surface looks into the lamp, and nowhere more."""
    found = shading_map(SHAPE, NEUTRAL, (0, 0, 0), Camera(), directional_light((0, 0, 1), np.full(3, 0.5)), 96)
    assert found.max() == pytest.approx(180 * 0.5 * 17 / 16, abs=1)
    assert 0 < found[found > 0].min() < 60  # the sides of the face look away


def test_every_pixel_is_shaded_by_the_normal_that_its_corners_give() -> None:
    head, camera = default_head(), Camera()
    posed = pose_vertices(head.vertices(), head.head_weight, (20.0, -10.0, 5.0))
    light = directional_light(np.array([0.6, 0.5, 0.4]), np.array([0.9, 0.7, 0.5])) + ambient(0.1)
    found = shade_face(head, posed, camera, light, 64, supersample=1)
    triangle, weights, _ = rasterize(project(posed, camera, 64), head.faces, 64, 64)
    values = np.column_stack([vertex_normals(posed, head.faces), head.face_mask])
    normals = interpolate(values, head.faces, triangle, weights)
    levels = shade(normals[..., :3] / np.linalg.norm(normals[..., :3], axis=-1, keepdims=True).clip(1e-9), light)
    expected = (
        np.rint(np.minimum(180 / 255 * levels.clip(0), 1) * 255)
        * ((triangle >= 0) & (normals[..., 3] > 0.5))[..., None]
    )
    assert (found > 0).any(axis=-1).sum() > 400
    assert np.abs(found - expected).max() <= 1


def test_only_the_face_is_shown_and_what_stands_before_it_hides_it() -> None:
    head = default_head()
    found = shading_map(SHAPE, NEUTRAL, (60, 0, 0), Camera(), ambient(1.0), 128)[..., 0] > 90
    posed = pose_vertices(head.vertices(), head.head_weight, (60.0, 0.0, 0.0))
    points = project(posed, Camera(), 128)
    inside = np.round(points[head.face_mask][:, :2]).astype(int)
    drawn = np.zeros((128, 128), bool)
    drawn[inside[:, 1], inside[:, 0]] = True
    rows, columns = np.nonzero(found)
    assert abs(columns.min() - inside[:, 0].min()) <= 2 and abs(columns.max() - inside[:, 0].max()) <= 2
    assert abs(rows.min() - inside[:, 1].min()) <= 2 and abs(rows.max() - inside[:, 1].max()) <= 2
    assert drawn[found].mean() > 0.3 and not found[-20:].any()  # no shoulders


def test_edges_are_means_of_finer_pixels() -> None:
    def levels(supersample: int) -> int:
        found = shading_map(SHAPE, NEUTRAL, (0, 0, 0), Camera(), ambient(1.0), 64, supersample=supersample)
        return len(np.unique(found))

    assert levels(1) == 2 and levels(2) == 5 and levels(4) > 8  # 0 to 4 of four pixels


def test_parameters_shape_the_map() -> None:
    head = default_head()
    rng = np.random.default_rng(0)
    shape, expression = rng.normal(size=48), rng.uniform(size=21)
    light, camera = directional_light((0.3, 0.5, 1.0), np.ones(3)), Camera(scale=1.1, shift_x=0.05, distance=12)
    whole = shading_map(shape, expression, (20, -10, 5), camera, light, 64)
    posed = pose_vertices(head.vertices(shape, expression), head.head_weight, (20, -10, 5))
    np.testing.assert_array_equal(whole, shade_face(head, posed, camera, light, 64))
    np.testing.assert_array_equal(whole, shading_map(shape, expression, (20, -10, 5), camera, light, 64, model=head))
    plain = shading_map(SHAPE, expression, (20, -10, 5), camera, light, 64)
    assert np.abs(whole.astype(int) - plain).max() > 20


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of what the rasterizer is asked for, in px of the finer map."""
    windows = []

    def noted(points, faces, height, width, *, corner):
        windows.append((*corner, corner[0] + width, corner[1] + height))
        return rasterize(points, faces, height, width, corner=corner)

    monkeypatch.setattr(shading, "rasterize", noted)
    return windows


@pytest.mark.parametrize("camera", [Camera(), Camera(shift_x=0.2, shift_y=-0.1), Camera(scale=0.5, shift_y=0.3)])
def test_no_more_is_drawn_than_the_face_and_a_margin(drawn: list, camera: Camera) -> None:
    head, size, times = default_head(), 96, 2
    posed = pose_vertices(head.vertices(), head.head_weight, (25.0, 10.0, 5.0))
    shade_face(head, posed, camera, ambient(1.0), size)
    near = project(posed, camera, size * times)[head.near_face, :2] / times
    (window,) = drawn
    for side, (least, most) in enumerate(zip(near.min(axis=0), near.max(axis=0), strict=True)):
        begin, end = window[side] / times, window[side + 2] / times
        assert begin == 0 or 1 <= least - begin < 2
        assert end == size or 2 <= end - most < 3
        assert 0 <= begin < end <= size
    assert sum(0 < edge < size * times for edge in window) >= 3


@pytest.mark.parametrize("shift", [{"shift_x": 9.0}, {"shift_y": 9.0}, {"shift_x": -9.0}])
def test_a_face_outside_of_the_map_is_not_drawn(drawn: list, shift: dict) -> None:
    found = shading_map(SHAPE, NEUTRAL, (0, 0, 0), Camera(**shift), ambient(1.0), 32)
    assert not found.any() and found.shape == (32, 32, 3) and not drawn


def test_all_is_drawn_where_a_point_is_not_finite(drawn: list) -> None:
    head = default_head()
    posed = pose_vertices(head.vertices(), head.head_weight, (0.0, 0.0, 0.0))
    posed[np.flatnonzero(head.face_mask)[0]] = np.nan
    shade_face(head, posed, Camera(), ambient(1.0), 32, supersample=1)
    assert drawn == [(0, 0, 32, 32)]


def test_pixels_are_shaded_by_hand() -> None:
    """One triangle whose corners look at the viewer and of which two belong to the face, in four finer pixels."""
    faces, triangle = np.array([[0, 1, 2]], np.int32), np.array([[0, 0], [-1, 0]], np.int32)
    weights = np.array([[[1, 0, 0], [0.5, 0, 0.5]], [[0, 0, 0], [0.25, 0.5, 0.25]]], np.float32)
    values = np.array([[0, 0, 2, 1], [0, 0, 2, 1], [0, 0, 2, 0]], np.float32)

    def shaded(level: float, times: int, grey: float = 0.4) -> list[list[int]]:
        found = np.zeros((2 // times, 2 // times, 1), np.uint8)
        shade_pixels(triangle, weights, faces, values, ambient(level)[:, :1].copy(), grey, times, found)
        return found[..., 0].tolist()

    assert shaded(1.0, 1) == [[102, 0], [0, 102]]  # half of a face is none
    assert shaded(1.0, 2) == [[51]]
    assert shaded(-1.0, 1) == [[0, 0], [0, 0]] and shaded(9.0, 1) == [[255, 0], [0, 255]]
