"""A model's own settings: used where the caller gives none, saved with it, and refused where no call can have them."""

import json

import numpy as np
import pytest
import torch

from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.calls.defaults import CallDefaults, read_defaults
from makeup_plugin.pipeline import FaceMakeUpPipeline

OWN = {"num_inference_steps": 2, "guidance_scale": 1.5, "guide_shading": True, "identity_scale": 0.5}


def draw(pipeline, photo, points, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("a man", photo, landmarks=points, generator=generator, output_type="np", **arguments)


def test_a_call_takes_the_models_settings_where_it_gives_none(pipeline, photo, points, tmp_path):
    wanted = draw(pipeline, photo, points, **OWN).images
    pipeline.register_to_config(default_call=OWN)
    output = draw(pipeline, photo, points)
    assert np.array_equal(output.images, wanted)
    assert output.provenance[0].settings["guide_shading"] is True
    given = {"num_inference_steps": 1, "guidance_scale": 1.0, "guide_shading": False, "identity_scale": 1.0}
    other = draw(pipeline, photo, points, **given).images
    pipeline.register_to_config(default_call=None)
    assert np.array_equal(draw(pipeline, photo, points, **given).images, other)

    pipeline.register_to_config(default_call=OWN)
    pipeline.save_pretrained(tmp_path)
    loaded = FaceMakeUpPipeline.from_pretrained(tmp_path)
    assert loaded.call_defaults == CallDefaults(**OWN)
    assert np.array_equal(draw(loaded, photo, points).images, wanted)


def test_without_own_settings_a_call_has_the_published_ones(base_parts):
    plain = FaceMakeUpPipeline(**base_parts()).call_defaults
    assert (plain.num_inference_steps, plain.guidance_scale, plain.guide_shading) == (50, 5.0, False)


def test_a_scale_is_for_a_channel_that_is_there(base_parts):
    pipeline = FaceMakeUpPipeline(**base_parts(), default_call={"num_inference_steps": 1, "identity_scale": 0.5})
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a man", output_type="np").provenance[0].settings["identity_scale"] == 0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (5, "5"),
        ({"steps": 3}, "'steps'"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 8.0}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guide_shading": "yes"}, "guide_shading"),
        ({"shading_scale": "1"}, "shading_scale"),
    ],
)
def test_impossible_settings_are_refused(values, named):
    with pytest.raises(ConfigError, match=rf"^default_call.*{named}"):
        read_defaults(values)


def test_a_damaged_index_is_named(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"default_call": {"num_inference_steps": -1}}))
    with pytest.raises(CheckpointError, match=r"model_index\.json: default_call: num_inference_steps"):
        FaceMakeUpPipeline.from_pretrained(tmp_path)
