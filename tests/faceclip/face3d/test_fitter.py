"""Frames of a fit: tensors agree with the renderer, changes of frame keep every projected point and every
shade.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from faceclip.data.arrays import load_arrays
from faceclip.face3d.camera import Camera, pose_vertices, project, rotation_matrix
from faceclip.face3d.fitter import ONE_VIEW, TRUST, FaceFitter, moved_towards, zoomed_and_turned
from faceclip.face3d.frames import FaceFit, move_fit, project_points, rotation_matrices, turn_light
from faceclip.face3d.light import shade
from faceclip.face3d.model import default_head
from faceclip.face3d.points import HeadPoints, outline_points
from faceclip.faces.align import align_face, apply_affine, invert_affine, similarity_transform, template
from faceclip.people.sample import sample_identity, sample_scene

SMALL = {"widths": (8, 8), "hidden": 16}


@pytest.fixture(scope="module")
def fit() -> FaceFit:
    """Five faces as the synthetic world draws them."""
    people = [sample_identity(3, i) for i in range(5)]
    scenes = [sample_scene(3, i, 2) for i in range(5)]
    return FaceFit(
        shape=torch.from_numpy(np.stack([person.shape for person in people])),
        expression=torch.from_numpy(np.stack([scene.expression for scene in scenes])),
        pose=torch.tensor([scene.pose for scene in scenes]),
        camera=torch.from_numpy(np.stack([scene.camera.to_array() for scene in scenes])),
        light=torch.from_numpy(np.stack([scene.light for scene in scenes])),
    )


def head_points(fit: FaceFit) -> torch.Tensor:
    head = default_head()
    vertices = [head.vertices(s, e) for s, e in zip(fit.shape.numpy(), fit.expression.numpy(), strict=True)]
    return torch.from_numpy(np.stack(vertices)[:, head.landmarks_68])


def test_tensor_geometry_equals_the_renderer(fit: FaceFit) -> None:
    head = default_head()
    points = project_points(head_points(fit), rotation_matrices(fit.pose), fit.camera) * 128 - 0.5
    for row in range(5):
        pose = tuple(fit.pose[row].tolist())
        torch.testing.assert_close(rotation_matrices(fit.pose)[row], torch.from_numpy(rotation_matrix(*pose)))
        posed = pose_vertices(
            head.vertices(fit.shape[row].numpy(), fit.expression[row].numpy()),
            np.ones(len(head.template), np.float32),
            pose,
        )
        expected = project(posed, Camera.from_array(fit.camera[row].numpy()), 128)[head.landmarks_68, :2]
        np.testing.assert_allclose(points[row].numpy(), expected, atol=2e-3)


def test_changing_the_frame_keeps_projected_points_and_comes_back(fit: FaceFit) -> None:
    points = project_points(head_points(fit), rotation_matrices(fit.pose), fit.camera) * 128 - 0.5
    # Turn, zoom and shift as an alignment would: eyes and mouth to the template at 64 px.
    five = points[:, [36, 45, 30, 48, 54]]
    matrix = similarity_transform(five, 64)
    moved = move_fit(fit, matrix, before=128, after=64)
    seen = project_points(head_points(moved), rotation_matrices(moved.pose), moved.camera) * 64 - 0.5
    assert (seen - apply_affine(matrix, points)).norm(dim=-1).mean() < 0.15
    back = move_fit(moved, invert_affine(matrix), before=64, after=128)
    for name, value in vars(fit).items():
        torch.testing.assert_close(getattr(back, name), value, atol=2e-4, rtol=1e-4)


def test_a_quarter_turn_by_hand(fit: FaceFit) -> None:
    # x' = −y, y' = x turns the picture clockwise (y points down): the head leans 90° further to the right.
    matrix = torch.tensor([[[0.0, -1.0, 127.0], [1.0, 0.0, 0.0]]]).expand(5, 2, 3)
    moved = move_fit(fit, matrix, before=128, after=128)
    torch.testing.assert_close(moved.pose[:, 2], fit.pose[:, 2] + 90)
    torch.testing.assert_close(moved.pose[:, :2], fit.pose[:, :2])
    # Light from above (y) now comes from image-right (x).
    above = torch.zeros(1, 9, 3)
    above[:, 1] = 1.0
    turned = turn_light(above, torch.tensor([-torch.pi / 2]))
    torch.testing.assert_close(turned[0, :, 0], torch.eye(9)[3], atol=1e-6, rtol=0)


def test_turned_light_shades_turned_normals_alike(fit: FaceFit) -> None:
    normals = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    angle = 0.7
    turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]).float()
    turned = turn_light(fit.light, torch.full((5,), angle))
    for row in range(5):
        expected = shade(normals.numpy(), fit.light[row].numpy())
        np.testing.assert_allclose(shade((normals @ turn.T).numpy(), turned[row].numpy()), expected, atol=1e-5)


def test_true_parameters_draw_the_stored_map_and_its_aligned_view(tiny_dataset: Path) -> None:
    arrays = load_arrays(tiny_dataset, "train")
    rows = [1, 2, 3]
    tensors = {name: torch.from_numpy(np.array(getattr(arrays, name))[rows]) for name in ("shape", "pose", "camera")}
    truth = FaceFit(
        **tensors,
        expression=torch.from_numpy(np.array(arrays.expression)[rows]),
        light=torch.from_numpy(np.array(arrays.light)[rows]).unflatten(1, (9, 3)),
    )
    # The jaw too, which follows the head only in part.
    np.testing.assert_allclose(FaceFitter.landmarks_68(truth, arrays.size), arrays.landmarks_68[rows], atol=1e-3)
    np.testing.assert_allclose(FaceFitter.landmarks_5(truth, arrays.size), arrays.landmarks_5[rows], atol=1e-3)
    stored = np.array(arrays.shading)[rows]
    drawn = FaceFitter.shading(truth, arrays.size).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(drawn - stored).max() <= 1
    points = np.array(arrays.landmarks_5, dtype=np.float64)[rows]
    matrix = similarity_transform(torch.from_numpy(points).float(), 64)
    crops = FaceFitter.shading(move_fit(truth, matrix, before=arrays.size, after=64), 64).permute(0, 2, 3, 1)
    for crop, image, five in zip(crops.numpy(), stored, points, strict=True):
        warped = align_face(image, five, 64).astype(np.float32) / 255
        inside = (warped.min(axis=-1) > 0.2) & (crop.min(axis=-1) > 0.2)
        assert inside.mean() > 0.1
        assert np.abs(crop - warped)[inside].mean() < 0.03


def test_pack_is_the_inverse_of_unpack(fit: FaceFit) -> None:
    model = FaceFitter(**SMALL)
    values = model.pack(fit)
    assert values.shape == (5, 48 + 21 + 3 + 4 + 27)
    for name, value in vars(model.unpack(values)).items():
        torch.testing.assert_close(value, getattr(fit, name))


@torch.no_grad()
def test_fit_answers_in_the_portrait_frame(tmp_path: Path, fit: FaceFit) -> None:
    torch.manual_seed(0)
    model = FaceFitter(**SMALL).eval()
    model.mean.copy_(model.pack(fit).mean(dim=0))
    model.head.weight.data.mul_(0.01)
    rng = np.random.default_rng(0)
    square, wide = rng.integers(0, 255, (100, 100, 3), np.uint8), rng.integers(0, 255, (80, 160, 3), np.uint8)
    landmarks = np.array([[40, 40], [60, 44], [49, 54], [40, 64], [57, 66]], dtype=np.float32)
    found = model.fit([square, wide], np.stack([landmarks, landmarks]), passes=1, views=ONE_VIEW)
    # The eyes lean by 11°: what the crop cannot see comes back from the alignment.
    size, view = model.config.image_size, model.config.view
    matrix = similarity_transform(torch.from_numpy(landmarks), size, view=view)[None]
    seen = align_face(square, landmarks.astype(np.float64), size, view=view)
    crop = model(torch.from_numpy(seen)[None].permute(0, 3, 1, 2) / 255)
    back = move_fit(crop, invert_affine(matrix), before=size, after=100)
    moved, _ = moved_towards(back, torch.from_numpy(landmarks), 100)
    torch.testing.assert_close(found.pose[0], moved.pose[0], atol=1e-3, rtol=0)
    assert found.camera[1, :3].tolist() == [1.0, 0.0, 0.0]  # of a photo of another shape only the face counts
    maps = model.shading(found, 32)
    assert maps.shape == (2, 3, 32, 32) and maps.min() >= 0 and maps.max() <= 1
    model.save_pretrained(tmp_path)
    again = FaceFitter.from_pretrained(tmp_path).fit([square], landmarks[None], passes=1, views=ONE_VIEW)
    assert torch.equal(again.pose, found.pose[:1])


@torch.no_grad()
def test_the_second_pass_looks_where_the_first_found_the_face(fit: FaceFit) -> None:
    torch.manual_seed(0)
    model = FaceFitter(**SMALL).eval()
    model.mean.copy_(model.pack(fit).mean(dim=0))
    model.head.weight.data.mul_(0.01)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (100, 100, 3), np.uint8), rng.integers(0, 255, (80, 160, 3), np.uint8)]
    landmarks = torch.tensor([[[40, 40], [60, 44], [49, 54], [40, 64], [57, 66]]] * 2).float()
    first = model.fit(images[:1], landmarks[:1].numpy(), passes=1, views=ONE_VIEW)
    points = model.landmarks_5(first, 100)
    assert (points - landmarks[:1]).norm(dim=-1).max() > 0.5
    second = model.fit_around(images[:1], points, [100])
    expected, _ = moved_towards(second, landmarks[0], 100)
    found = model.fit(images, landmarks.numpy(), views=ONE_VIEW)
    torch.testing.assert_close(found.pose[:1], expected.pose, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.camera[:1], expected.camera, atol=1e-3, rtol=0)


@torch.no_grad()
def test_views_are_turned_back_and_averaged(fit: FaceFit) -> None:
    """A model that sees nothing finds the same head in every crop, which turned back leans as the crop did: views
    turned both ways give the plain fit on average, one alone does not."""
    model = FaceFitter(**SMALL).eval()
    model.mean.copy_(model.pack(fit)[0])
    model.head.weight.zero_()
    model.head.bias.zero_()
    image = [np.zeros((100, 100, 3), np.uint8)]
    points = model.landmarks_5(model.fit_around(image, torch.from_numpy(template(100))[None].float(), [100]), 100)
    plain, both, one = (
        model.fit(image, points.numpy(), passes=1, views=views)
        for views in (ONE_VIEW, ((1.0, 20.0), (1.0, -20.0)), ((1.25, 20.0),))
    )
    torch.testing.assert_close(both.pose, plain.pose, atol=1e-3, rtol=0)
    first = model.fit_around(image, zoomed_and_turned(points, 1.25, 20.0), [100])
    exact = model.fit_around(image, points, [100])
    torch.testing.assert_close(first.pose[0, 2] - exact.pose[0, 2], torch.tensor(20.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(first.camera[:, 0], exact.camera[:, 0] * 1.25, atol=1e-4, rtol=0)
    assert (one.pose - plain.pose).abs().max() > 1


def test_a_fit_far_from_the_landmarks_is_moved_towards_them(fit: FaceFit) -> None:
    one = FaceFit(**{name: value[:1] for name, value in vars(fit).items()})
    points = FaceFitter.landmarks_5(one, 128)[0]
    span = (points - points.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    near, far = points + 0.5 * TRUST * span, points + torch.tensor([0.3, 0.4]) * span
    kept, seen = moved_towards(one, near, 128)
    assert kept is one and torch.equal(seen, points)
    fit, seen = moved_towards(one, far, 128)
    moved = FaceFitter.landmarks_5(fit, 128)[0]
    assert torch.equal(seen, moved)
    # It was half a span away, and is one TRUST away now, on the straight line; move_fit errs by a part of a pixel.
    torch.testing.assert_close(moved, far - torch.tensor([0.6, 0.8]) * TRUST * span, atol=0.2, rtol=0)


def test_of_a_large_photo_every_pixel_counts() -> None:
    """Lines of one pixel, black and white: the crop of a photo with four pixels for one of the crop is grey."""
    photo = np.zeros((512, 512, 3), np.uint8)
    photo[:, ::2] = 255
    landmarks = torch.from_numpy(template(448) + 32)  # the crop's 448 px, upright
    crop = align_face(photo, landmarks.numpy(), 112)
    assert crop.shape == (112, 112, 3)
    assert np.abs(crop[4:-4, 4:-4].astype(int) - 127).max() <= 2


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"depths .*widths.*\[1, 1\] .*\[8, 8\]"):
        FaceFitter(widths=(8, 8), depths=(1, 1))
    with pytest.raises(ValueError, match=r"image_size .*16.* 100$"):
        FaceFitter(image_size=100)
    with pytest.raises(ValueError, match=r"\(3, 64, 64\)"):
        FaceFitter(**SMALL)(torch.rand(3, 64, 64))
    with pytest.raises(ValueError, match=r"passes .* 1, .* 0$"):
        FaceFitter(**SMALL).fit([np.zeros((64, 64, 3), np.uint8)], np.zeros((1, 5, 2)), passes=0)
    with pytest.raises(ValueError, match=r"points .* 68, .* 67$"):
        FaceFitter(**SMALL, looks=1, look_points=67)


def test_an_untrained_look_corrects_nothing_and_a_taught_one_reads_where_the_fit_lies(fit: FaceFit) -> None:
    """One look learns, from crops that show a dot at the fitted nose tip or beside it, how far the face is off."""
    torch.manual_seed(0)
    model = FaceFitter(**SMALL, image_size=64, looks=1, look_channels=4, look_hidden=32).eval()
    model.mean.copy_(model.pack(fit).mean(dim=0))
    model.head.weight.data.zero_()
    model.head.bias.data.zero_()
    with torch.no_grad():
        first, last = model.successive_fits(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(getattr(first, name), value) for name, value in vars(last).items())
    nose = model.corrector.points.positions(first.rows(slice(0, 1)))[0, 30] * 64 - 0.5
    place = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="xy"), dim=-1)
    off = torch.linspace(-6, 6, 13)
    crops = torch.stack([(-(place - nose - torch.tensor([x, 0.0])).square().sum(dim=-1) / 8).exp() for x in off])
    crops = crops[:, None].expand(-1, 3, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        error = (model.successive_fits(crops)[-1].camera[:, 1] - first.camera[0, 1] - off / 64) * 64
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    assert error.abs().mean() < 1.0 < off.abs().mean() / 3
    assert model.head.weight.grad is None  # a look answers for its own fit alone


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_points_keep_their_places_in_half_precision(fit: FaceFit, dtype: torch.dtype) -> None:
    head = default_head()
    picked = outline_points(head, 96)
    assert len(set(picked)) == 96 and head.face_mask[picked[68:]].all()
    exact = HeadPoints(head, picked).positions(fit)
    torch.testing.assert_close(exact[:, :68], project_points(head_points(fit), rotation_matrices(fit.pose), fit.camera))
    model = FaceFitter(**SMALL, image_size=64, looks=1).eval().to(dtype)
    assert torch.equal(model.corrector.points.positions(fit), exact)
    found = model(torch.rand(2, 3, 64, 64).to(dtype))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in vars(found).values())
