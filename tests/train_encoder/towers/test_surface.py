"""Where the fitter's losses compare faces: points, normals and visibility of the head model."""

import numpy as np
import pytest
import torch

from faceclip.face3d.camera import rotation_matrix
from faceclip.face3d.frames import FaceFit
from faceclip.face3d.light import shade
from faceclip.face3d.model import HeadModel, default_head
from faceclip.face3d.points import border_vertices
from faceclip.face3d.rasterizer import vertex_normals
from faceclip.people.sample import sample_identity, sample_scene
from train_encoder.towers.fitter import Surface

EVENLY = 40


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return default_head()


@pytest.fixture(scope="module")
def fit() -> FaceFit:
    """One smiling face turned far to the side."""
    person, scene = sample_identity(3, 1), sample_scene(3, 1, 2)
    return FaceFit(
        shape=torch.from_numpy(person.shape)[None],
        expression=torch.from_numpy(scene.expression)[None],
        pose=torch.tensor([[50.0, 5.0, -3.0]]),
        camera=torch.from_numpy(scene.camera.to_array())[None],
        light=torch.from_numpy(scene.light)[None],
    )


def picked(head: HeadModel) -> np.ndarray:
    face = np.flatnonzero(head.face_mask)
    evenly = face[np.linspace(0, len(face) - 1, EVENLY).astype(int)]
    return np.concatenate([head.landmarks_68, border_vertices(head), evenly])


def true_normals(head: HeadModel, fit: FaceFit) -> np.ndarray:
    vertices = head.vertices(fit.shape[0].numpy(), fit.expression[0].numpy())
    return vertex_normals(vertices, head.faces)[picked(head)] @ rotation_matrix(*fit.pose[0].tolist()).T


def test_the_border_runs_around_the_face(head: HeadModel) -> None:
    border = border_vertices(head)
    assert head.face_mask[border].all() and 50 < len(border) < head.face_mask.sum() / 10
    chin, tip = head.landmarks_68[8], head.landmarks_68[30]
    distance = np.linalg.norm(head.template[border] - head.template[chin], axis=1).min()
    assert distance < 0.15 < 0.5 < np.linalg.norm(head.template[border] - head.template[tip], axis=1).min()


def test_shading_is_that_of_the_persons_own_normals(head: HeadModel, fit: FaceFit) -> None:
    expected = shade(true_normals(head, fit), fit.light[0].numpy())
    found = Surface(head, EVENLY).shading(fit)[0].clamp_min(0).numpy()
    mean_head = vertex_normals(head.template, head.faces)[picked(head)] @ rotation_matrix(*fit.pose[0].tolist()).T
    rough = np.abs(shade(mean_head, fit.light[0].numpy()) - expected).mean()
    assert np.abs(found - expected).mean() < 0.4 * rough


def test_what_faces_away_hardly_counts(head: HeadModel, fit: FaceFit) -> None:
    weights = Surface(head, EVENLY).visibility(fit)[0]
    towards = torch.from_numpy(true_normals(head, fit)[:, 2])
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    assert (towards > 0.2).any() and (towards < -0.4).any()
    near, far = weights[towards > 0.2], weights[towards < -0.4]
    assert (near == near.max()).float().mean() > 0.95  # all but where the linear normals err
    torch.testing.assert_close(far.median(), near.max() / 10)
