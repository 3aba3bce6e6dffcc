"""Chosen vertices of the head model as tensors: where they lie in a picture for a batch of fits."""

import numpy as np
import torch
from torch import Tensor

from faceclip.face3d.frames import FaceFit, project_points, rotation_matrices
from faceclip.face3d.model import HeadModel


class HeadPoints:
    """Vertices `picked` (N indices) of a head model, turned as if all followed the head fully (the jaw's do not quite).

    Its tensors follow the fits to their device and stay in 32 bits whatever a module that uses them is cast to: in 16
    bits a point would be off by pixels.
    """

    def __init__(self, head: HeadModel, picked: np.ndarray) -> None:
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}
        bases = np.concatenate([head.shape_basis, head.expression_basis])
        self.keep("points", head.template[picked], bases[:, picked])

    def keep(self, name: str, mean: np.ndarray, basis: np.ndarray) -> None:
        """Keep a linear quantity: `mean` (N, 3), and its change (K + E, N, 3) with each coefficient."""
        flat = torch.from_numpy(basis.astype(np.float32)).flatten(1)
        self._kept[name] = torch.from_numpy(mean.astype(np.float32)), flat

    def linear(self, fit: FaceFit, name: str = "points") -> Tensor:
        """What `keep` kept under `name`, (B, N, 3), for the shape and expression of a fit."""
        coefficients = torch.cat([fit.shape, fit.expression], dim=1)
        if self._kept[name][0].device != coefficients.device:
            mean, basis = self._kept[name]
            self._kept[name] = mean.to(coefficients.device), basis.to(coefficients.device)
        mean, basis = self._kept[name]
        return mean + (coefficients @ basis).unflatten(1, (-1, 3))

    def positions(self, fit: FaceFit) -> Tensor:
        """Points (B, N, 2) as fractions of the picture, 0 left/top, 1 right/bottom."""
        return project_points(self.linear(fit), rotation_matrices(fit.pose), fit.camera)


def border_vertices(head: HeadModel) -> np.ndarray:
    """Indices of the face's vertices that share a triangle with one outside the face, in order around the face."""
    border = head.faces[head.face_mask[head.faces].any(axis=1) & ~head.face_mask[head.faces].all(axis=1)]
    border = np.unique(border[head.face_mask[border]])
    away = head.template[border, :2] - head.template[border, :2].mean(axis=0)
    return border[np.argsort(np.arctan2(away[:, 1], away[:, 0]))]


def outline_points(head: HeadModel, count: int) -> np.ndarray:
    """`count` vertex indices that outline a face: the 68 landmarks, and its border evenly. Raises ValueError below
    68."""
    if count < len(head.landmarks_68):
        raise ValueError(f"points must be at least {len(head.landmarks_68)}, got {count}")
    border = border_vertices(head)
    places = np.linspace(0, len(border), count - len(head.landmarks_68), endpoint=False)
    return np.concatenate([head.landmarks_68, border[places.astype(int)]])
