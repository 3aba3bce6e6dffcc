"""What pose=, expression= and light= do to a shading map, as a sheet: python examples/fit_edits.py --out sheet.png."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from faceclip.face3d.camera import Camera
from faceclip.face3d.fitter import FaceFitter
from faceclip.face3d.frames import FaceFit
from faceclip.face3d.light import ambient_light, directional_light
from faceclip.face3d.model import default_head
from faceclip.settings import run, setting
from makeup_plugin.fit_edits import read_fit_edits

ROWS = (
    [{"pose": {"yaw": angle}} for angle in (-50, -25, 0, 25, 50)],
    [{"expression": {name: 1.0}} for name in ("smile", "jaw_open", "brow_down", "pucker", "cheek_puff")],
    [{"light": direction} for direction in ((-1, 0.3, 0.4), (-1, 1, 1), (0, 1, 1), (1, 1, 1), (1, 0.3, 0.4))],
)


@dataclass(kw_only=True)
class SheetSettings:
    """The sheet of the manual."""

    size: int = setting(160, "px of one map")
    out: Path = setting(Path("runs/examples/fit_edits.png"), "the picture")


def draw(settings: SheetSettings) -> None:
    """One row each for pose, expression and light, on the mean head."""
    head = default_head()
    light = ambient_light([0.45] * 3) + directional_light([0.3, 0.4, 1.0], [0.5] * 3)
    fit = FaceFit(
        shape=torch.zeros(1, head.shape_size),
        expression=torch.zeros(1, head.expression_size),
        pose=torch.tensor([[10.0, 0.0, 0.0]]),
        camera=torch.from_numpy(Camera(scale=1.4).to_array())[None],
        light=torch.from_numpy(light)[None],
    )
    lines = []
    for row in ROWS:
        edits = [read_fit_edits(**{"pose": None, "expression": None, "light": None, **change}) for change in row]
        maps = [FaceFitter.shading(edit.apply(fit), settings.size)[0] for edit in edits]
        lines.append(torch.cat(maps, dim=2))
    pixels = (torch.cat(lines, dim=1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(settings.out)
    print(settings.out)


if __name__ == "__main__":
    if status := run(draw, SheetSettings, flags=True, usage="usage: python examples/fit_edits.py [--key VALUE …]"):
        sys.exit(status)
