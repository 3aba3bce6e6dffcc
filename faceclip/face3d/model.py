"""The head as a linear model: mean + identity basis · shape + expression basis · expression (Blanz & Vetter 1999)."""

import json
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from faceclip.errors import CheckpointError

ASSET = Path(__file__).parent / "assets" / "head.safetensors"
BODY, RIGHT_EYE, LEFT_EYE, UPPER_TEETH, LOWER_TEETH = range(5)
# Mean head, decimetres: what lies outside is hair, ears, neck or scalp and never part of the "face".
_FACE_TOP, _FACE_BACK, _FACE_SIDE = 7.98, 0.50, 0.76


class HeadModel:
    """Linear head and bust of the shipped bases (units: decimetres; y up, z towards the viewer, +x image-right).

    Attributes:
        template (V, 3); faces (F, 3), counter-clockwise; part (V,) index into `parts`; shape_basis (K, V, 3) for
        coefficients of unit variance; expression_basis (E, V, 3) for controls of about 0 to 1; lips (V,) 0 to 1;
        face_faces: the triangles of the face proper, which the shading map shows; near_face: the vertices of all
        triangles that have a vertex in it.
    """

    def __init__(self, path: Path | str = ASSET) -> None:
        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                metadata = file.metadata()
        except (OSError, SafetensorError) as error:
            remedy = "reinstall the package or run `python -m faceclip.face3d.extract`"
            raise CheckpointError(f"head bases {path} cannot be read ({error}): {remedy}") from error
        self.template = tensors["template"]
        self.faces = tensors["faces"]
        self.part = tensors["part"]
        self.shape_basis = tensors["shape_basis"].astype(np.float32)
        self.expression_basis = tensors["expression_basis"].astype(np.float32)
        self.lips = tensors["lips"].astype(np.float32)
        self.landmarks_68 = tensors["landmarks_68"]
        self.nose_mouth = tensors["nose_mouth"]
        self.expression_names: tuple[str, ...] = tuple(json.loads(metadata["expressions"]))
        self.eye_front = [
            int(np.flatnonzero(self.part == eye)[self.template[self.part == eye][:, 2].argmax()])
            for eye in (RIGHT_EYE, LEFT_EYE)
        ]
        t = self.template
        face = (self.part == BODY) & (t[:, 1] < _FACE_TOP - 0.35 * t[:, 0] ** 2) & (np.abs(t[:, 0]) < _FACE_SIDE)
        face &= (t[:, 2] > _FACE_BACK) & (t[:, 1] > 6.2 + 0.55 * np.maximum(0.95 - t[:, 2], 0))
        face |= (self.part == RIGHT_EYE) | (self.part == LEFT_EYE)
        self.face_mask = face
        self.face_faces = self.faces[face[self.faces].all(1)]
        self.near_face = np.unique(self.faces[face[self.faces].any(1)])
        # How much a vertex follows the head's rotation: 1 in the head, easing to 0 through the neck.
        ease = np.clip((t[:, 1] - 5.75 - 0.25 * (1 - t[:, 2])) / 0.75, 0, 1)
        self.head_weight = np.where(self.part == BODY, ease * ease * (3 - 2 * ease), 1).astype(np.float32)

    @property
    def shape_size(self) -> int:
        """Number of identity coefficients K."""
        return len(self.shape_basis)

    @property
    def expression_size(self) -> int:
        """Number of expression controls E."""
        return len(self.expression_basis)

    def vertices(self, shape: np.ndarray | None = None, expression: np.ndarray | None = None) -> np.ndarray:
        """Vertices (V, 3) float32 for identity coefficients (K,) and expression controls (E,); None is neutral.

        Raises:
            ValueError: a vector of another length.
        """
        out = self.template.copy()
        given = (("shape", shape, self.shape_basis), ("expression", expression, self.expression_basis))
        for name, value, basis in given:
            if value is None:
                continue
            value = np.asarray(value, np.float32)
            if value.shape != (len(basis),):
                raise ValueError(f"{name} must have shape ({len(basis)},), got {value.shape}")
            out += np.tensordot(value, basis, 1)
        return out

    def landmarks_5(self, points: np.ndarray) -> np.ndarray:
        """(5, D) of per-vertex `points` (V, D): image-left eye, image-right eye, nose tip, mouth corners."""
        return points[[*self.eye_front, *self.nose_mouth]]


@cache
def default_head() -> HeadModel:
    """The shipped head, read once."""
    return HeadModel()
