"""Photos with their fitted meshes and shading maps, as a sheet: python examples/fitted_photos.py '[a.jpg, b.jpg]'.

Needs the extra `photos`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceclip.errors import ConfigError
from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.frames import FaceFit
from faceclip.face3d.mesh_fitter import MeshFitter
from faceclip.face3d.model import default_head
from faceclip.faces import align_face, find_faces, load_image
from faceclip.people.framing import framed
from faceclip.people.render import PortraitRenderer
from faceclip.people.sample import sample_identity, sample_scene
from faceclip.settings import run, setting

VIEW = 1.7  # side of the shown square divided by that of the ArcFace crop
SIDE = 240  # px of a cell
FINER = 4  # the mesh is drawn at this multiple of the size and reduced, so that its lines are thin
RENDER_SEED = 77


@dataclass(kw_only=True)
class SheetConfig:
    """What is shown, and where the sheet goes."""

    pictures: tuple[Path, ...] = setting((), "photos, each with a face", positional=True)
    out: Path = setting(Path("runs/examples/fitted_photos.jpg"), "the sheet")
    renders: int = setting(3, "synthetic people beside them", least=0)

    def __post_init__(self) -> None:
        if not self.pictures and not self.renders:
            raise ConfigError("PICTURES: name some, or --renders: at least 1 is expected")
        if self.out.suffix.lower() not in Image.registered_extensions():
            raise ConfigError(f"--out={self.out}: expected a picture's name, such as sheet.jpg")


def cells(picture: NDArray[np.uint8], fitter: MeshFitter) -> list[NDArray[np.uint8]]:
    """Returns three cells (SIDE, SIDE, 3): the square around the face, the mesh drawn over it, and the shading map."""
    square = align_face(picture, find_faces(picture)[0].landmarks, SIDE, view=VIEW)
    fit = fitter.fit([square], find_faces(square)[0].landmarks[None])
    shading = fitter.shading(fit, SIDE)[0].permute(1, 2, 0).numpy()
    return [square, with_mesh(square, fit), (shading * 255).astype(np.uint8)]


def with_mesh(picture: NDArray[np.uint8], fit: FaceFit) -> NDArray[np.uint8]:
    """Draws the visible triangles of one fit's face over a square picture (S, S, 3)."""
    head = default_head()
    posed = pose_vertices(
        head.vertices(fit.shape[0].numpy(), fit.expression[0].numpy()), head.head_weight, tuple(fit.pose[0].tolist())
    )
    side = FINER * len(picture)
    points = project(posed, Camera.from_array(fit.camera[0].numpy()), side)[:, :2]
    corners = points[head.face_faces]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    seen = corners[first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0]
    drawn = cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC)
    lines = [np.round(corner * 16).astype(np.int32) for corner in seen]
    cv2.polylines(drawn, lines, True, (90, 220, 120), 1, cv2.LINE_AA, 4)
    return cv2.resize(drawn, picture.shape[1::-1], interpolation=cv2.INTER_AREA)


def make(config: SheetConfig) -> None:
    """Draws the sheet, one column per picture, and saves it to `config.out`."""
    fitter, renderer = MeshFitter(), PortraitRenderer()
    pictures = [load_image(path) for path in config.pictures]
    for number in range(config.renders):
        identity = sample_identity(RENDER_SEED, number)
        scene = framed(identity, sample_scene(RENDER_SEED, number, 0), "head", renderer.model)
        pictures.append(renderer.render(identity, scene, 320).image)
    columns = [np.vstack(cells(picture, fitter)) for picture in pictures]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.hstack(columns)).save(config.out, quality=88)
    print(config.out)


if __name__ == "__main__":
    if status := run(make, SheetConfig, flags=True):
        sys.exit(status)
