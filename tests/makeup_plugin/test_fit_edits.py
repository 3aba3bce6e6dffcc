"""pose=, expression= and light= change the fitted face before it is drawn."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faceclip.errors import ConfigError
from faceclip.face3d.camera import Camera
from faceclip.face3d.fitter import FaceFitter
from faceclip.face3d.frames import FaceFit
from faceclip.face3d.light import ambient_light, directional_light
from faceclip.face3d.model import default_head
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.fit_edits import read_fit_edits
from makeup_plugin.marking.provenance import read_provenance

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fit() -> FaceFit:
    """Two faces of the mean head, one turned and smiling."""
    head = default_head()
    light = ambient_light([0.4, 0.5, 0.6]) + directional_light([0.3, 0.2, 1.0], [0.5, 0.4, 0.3])
    expression = torch.zeros(2, head.expression_size)
    expression[1, head.expression_names.index("smile")] = 0.5
    return FaceFit(
        shape=torch.zeros(2, head.shape_size),
        expression=expression,
        pose=torch.tensor([[0.0, 0.0, 0.0], [20.0, 5.0, -3.0]]),
        camera=torch.from_numpy(Camera().to_array()).repeat(2, 1),
        light=torch.from_numpy(light).repeat(2, 1, 1),
    )


def changed(fit: FaceFit, **edits) -> FaceFit:
    return read_fit_edits(**{"pose": None, "expression": None, "light": None, **edits}).apply(fit)


def test_angles_replace_those_of_the_fit(fit):
    turned = changed(fit, pose={"yaw": 30})
    assert turned.pose.tolist() == [[30.0, 0.0, 0.0], [30.0, 5.0, -3.0]]
    assert torch.equal(turned.expression, fit.expression) and torch.equal(turned.light, fit.light)
    assert changed(fit, pose=(1, None, 3)).pose.tolist() == [[1.0, 0.0, 3.0], [1.0, 5.0, 3.0]]
    left, right = (FaceFitter.landmarks_5(changed(fit, pose={"yaw": yaw}), 128)[0] for yaw in (-30, 30))
    assert left[2, 0] < 60 < 68 < right[2, 0]  # the nose goes to the side of the picture that yaw says


def test_controls_replace_those_of_the_fit(fit):
    names = default_head().expression_names
    opened = changed(fit, expression={"jaw_open": 1.0})
    assert (
        opened.expression[1, names.index("smile")] == 0.5 and (opened.expression[:, names.index("jaw_open")] == 1).all()
    )
    assert not changed(fit, expression="neutral").expression.any()
    before, after = (FaceFitter.landmarks_68(one, 256)[0] for one in (fit, opened))
    assert after[8, 1] > before[8, 1] + 3  # the chin goes down


def test_a_lamp_keeps_brightness_and_tint(fit):
    left, right = (changed(fit, light=(x, 0.2, 0.4)) for x in (-1, 1))
    torch.testing.assert_close(left.light[:, 0], fit.light[:, 0])
    maps = [FaceFitter.shading(one, 64)[0].mean(dim=0) for one in (left, right)]
    halves = [(float(one[:, :32].sum()), float(one[:, 32:].sum())) for one in maps]
    assert halves[0][0] > 1.3 * halves[0][1] and halves[1][1] > 1.3 * halves[1][0]
    given = np.random.default_rng(0).normal(size=(9, 3))
    np.testing.assert_allclose(changed(fit, light=given).light.numpy(), np.stack([given, given]), rtol=1e-6)


def test_the_pipeline_draws_the_changed_fit(pipeline, photo, points):
    def red_and_green(**edits):
        output = pipeline("a man", photo, landmarks=points, num_inference_steps=1, **edits)
        return np.asarray(output.shading_maps[0])[0, 0, :2].tolist()

    # The tests' fitter draws the shape in red and yaw, as a share of 1, in green.
    red, green = red_and_green()
    assert red_and_green(pose={"yaw": 0.2}) == [red, round(0.2 * 255)] and green != round(0.2 * 255)
    assert red_and_green(pose={"pitch": 0.2}) == [red, green]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pose": 5}, "^pose .* 5$"),
        ({"pose": (1, 2)}, r"^pose .*\(1, 2\)"),
        ({"pose": {"jaw": 1}}, "^pose: 'jaw'"),
        ({"pose": {"yaw": 120}}, "^pose: yaw .*90.* 120$"),
        ({"pose": {"pitch": float("nan")}}, "^pose: pitch .*nan"),
        ({"expression": "happy"}, "^expression='happy'"),
        ({"expression": {"happy": 1}}, "^expression: 'happy' .*smile"),
        ({"expression": {"smile": 5}}, "^expression: smile .* 5$"),
        ({"expression": [1]}, "^expression "),
        ({"light": (0, 0, 0)}, "^light"),
        ({"light": (1, 2)}, r"^light .*\(2,\)"),
        ({"light": "left"}, "^light .*'left'"),
        ({"pose": {"yaw": 1}, "shading_map": np.zeros((32, 32, 3), np.uint8)}, "^pose, .*shading_map"),
    ],
)
def test_impossible_edits_are_named(untouched, photo, points, arguments, message):
    with pytest.raises(ConfigError, match=message):
        untouched("a man", photo, landmarks=points, num_inference_steps=1, **arguments)


def test_edits_need_a_shading_channel(base_parts):
    with pytest.raises(ConfigError, match=r"^pose, .*shading_channel"):
        FaceMakeUpPipeline(**base_parts())("a man", pose={"yaw": 10})


def test_the_sheet_of_the_manual(tmp_path, monkeypatch):
    out = tmp_path / "sheet.png"
    monkeypatch.setattr(sys, "argv", ["fit_edits.py", "--size", "32", "--steps", "1", "--out", str(out)])
    runpy.run_path(str(ROOT / "examples" / "fit_edits.py"), run_name="__main__")
    pixels = np.asarray(Image.open(out)).astype(int)
    assert pixels.shape == (6 * 32, 5 * 32, 3)
    lines = [pixels[y : y + 32].reshape(32, 5, 32, 3).swapaxes(0, 1) for y in range(0, 192, 32)]
    maps, pictures = np.concatenate(lines[::2]), np.concatenate(lines[1::2])
    assert len({tile.tobytes() for tile in maps}) == len({tile.tobytes() for tile in pictures}) == 15
    assert (maps[:, :2] < 8).all() and (maps.max(axis=(1, 2, 3)) > 60).all()  # a face on black
    assert read_provenance(out)["model"] == "tiny"
