"""How much of a person a portrait shows: head and shoulders as drawn, or the head alone.

The choice moves nothing but the scene's camera, so all labels stay exact (regions, landmarks, shading, camera).
"""

from dataclasses import replace
from typing import Literal

from faceclip.face3d.camera import Camera, pose_vertices, project
from faceclip.face3d.model import BODY, HeadModel
from faceclip.people.parameters import Identity, Scene

Framing = Literal["bust", "head"]

HEAD_HEIGHT = 0.74  # crown to chin as a share of the picture: a frontal face is about half of it wide, hats stay inside
HEAD_MIDDLE = 0.56  # where the middle of the head is, from the top: hair and hats need more room than the neck
RIGID = 0.98  # head weight of the vertices that follow the head's pose and not the neck's


def framed(identity: Identity, scene: Scene, framing: Framing, model: HeadModel) -> Scene:
    """Returns the scene in the given framing.

    ``"bust"`` keeps the sampled camera. ``"head"`` places the posed head, from crown to chin and from side to side, in
    the middle of the picture and at the same size for every person; the sampled scale and shift vary both a little.
    """
    if framing == "bust":
        return scene
    posed = pose_vertices(model.vertices(identity.shape, scene.expression), model.head_weight, scene.pose)
    drawn = scene.camera
    # At scale 1 and without shift, as fractions of the picture from its centre.
    points = project(posed, Camera(distance=drawn.distance), 1)[:, :2]
    head = points[(model.part == BODY) & (model.head_weight > RIGID)]
    crown, chin = head[:, 1].min(), points[model.landmarks_68, 1].max()
    scale = drawn.scale * HEAD_HEIGHT / float(chin - crown)
    middle_x, middle_y = float(head[:, 0].min() + head[:, 0].max()) / 2, float(crown + chin) / 2
    camera = replace(
        drawn,
        scale=scale,
        shift_x=drawn.shift_x - middle_x * scale,
        shift_y=drawn.shift_y + HEAD_MIDDLE - 0.5 - middle_y * scale,
    )
    return replace(scene, camera=camera)
