"""The nodes for ComfyUI: schema, what they do, and the workflow in the documentation."""

import inspect
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.comfy.pictures import as_arrays, next_prefix
from makeup_plugin.marking.provenance import read_provenance

WORKFLOW = Path(__file__).parents[3] / "docs" / "comfy_workflow.json"
FOR_A_MODEL = {"FaceMakeUpApply", "FaceMakeUpEncodePrompt"}


@pytest.fixture
def photos():
    """A batch of two: scikit-image's portrait, and the same darker."""
    picture = Image.open(files("skimage") / "data/astronaut.png").convert("RGB").crop((128, 0, 320, 192))
    photo = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)
    return torch.stack([photo, photo * 0.8])


def arguments(node, **given):
    """A node's defaults, as ComfyUI fills them in, and what a workflow gives."""
    found = {}
    for part in node.GET_SCHEMA().inputs:
        default = getattr(part, "given", {}).get("default", getattr(part, "default", None))
        if default is not None:
            found[part.id] = default
    return found | given


def execute(node, **given):
    """One run of a node, with its defaults and as node 7 of a workflow."""
    import comfy_api.v0_0_2 as api

    return node.PREPARE_CLASS_CLONE({api.io.Hidden.unique_id: "7"}).execute(**arguments(node, **given))


def test_every_node_takes_the_inputs_of_its_schema(nodes):
    own = {"FaceMakeUpLoadPipeline", "FaceMakeUpEncodeIdentity", "FaceMakeUpDraw", "FaceMakeUpSave"}
    assert set(nodes) == own | FOR_A_MODEL
    for node in nodes.values():
        schema, taken = node.GET_SCHEMA(), inspect.signature(node.execute).parameters
        assert [part.id for part in schema.inputs] == list(taken)
        assert all((taken[part.id].default is None) == part.optional for part in schema.inputs)


def test_a_person_from_photos_is_drawn_and_saved_with_provenance(nodes, pipeline, photos, tmp_path):
    import folder_paths

    folder_paths.set_output_directory(str(tmp_path))
    encode, draw, save = (nodes[f"FaceMakeUp{name}"] for name in ("EncodeIdentity", "Draw", "Save"))
    identity, faces = execute(encode, pipeline=pipeline, photos=photos).result
    assert faces.shape == (2, 448, 448, 3) and faces.dtype == torch.float32 and faces.min() >= 0 and faces.max() <= 1

    wish = {"prompt": "a man", "identity": identity, "count": 2, "seed": 3, "steps": 2}
    images, maps, drawing = execute(draw, pipeline=pipeline, **wish).result
    assert images.shape == maps.shape == (2, 32, 32, 3) and images.is_contiguous()
    expected = pipeline(
        "a man",
        identity=identity,
        negative_prompt="",
        num_inference_steps=2,
        num_images_per_prompt=2,
        generator=[torch.manual_seed(3), torch.Generator().manual_seed(4)],
        output_type="np",
    )
    assert np.array_equal(images.numpy(), expected.images.astype(np.float32))
    assert np.array_equal((maps[0].numpy() * 255).round(), np.asarray(expected.shading_maps[0]))

    for _ in range(2):
        shown = execute(save, drawing=drawing, prefix="people/anna").ui.as_dict()["images"]
    names = [f"anna_{run:05d}_{image:04d}.png" for run in (0, 1) for image in (0, 1)]
    assert sorted(path.name for path in (tmp_path / "people").iterdir()) == names
    assert [dict(entry) for entry in shown] == [
        {"filename": name, "subfolder": "people", "type": "output"} for name in names[2:]
    ]
    assert read_provenance(tmp_path / "people" / names[1])["seed"] == 4


def test_words_alone_and_a_given_map(nodes, pipeline):
    draw = nodes["FaceMakeUpDraw"]
    wish = {"pipeline": pipeline, "prompt": "a man", "steps": 1}
    plain, black, _ = execute(draw, **wish).result
    assert not black.any()
    given = torch.full((1, 32, 32, 3), 0.5)
    shaded, maps, _ = execute(draw, **wish, shading_map=given).result
    assert not torch.equal(plain, shaded) and (maps - 0.5).abs().max() < 0.01


def test_a_drawing_shows_its_progress_and_can_be_cancelled(nodes, pipeline):
    from comfy import model_management, utils

    shown = []
    utils.set_progress_bar_global_hook(lambda value, total, preview, node_id: shown.append((value, total, node_id)))
    wish = {"pipeline": pipeline, "prompt": "a man", "steps": 1}
    model_management.interrupt_current_processing()
    with pytest.raises(model_management.InterruptProcessingException):
        execute(nodes["FaceMakeUpDraw"], **wish)
    shown.clear()
    assert len(execute(nodes["FaceMakeUpDraw"], **wish | {"steps": 2}).result[0]) == 1
    assert shown == [(1, 2, "7"), (2, 2, "7")]
    utils.set_progress_bar_global_hook(None)


def test_a_missing_pipeline_is_named(nodes):
    load = nodes["FaceMakeUpLoadPipeline"]
    with pytest.raises(CheckpointError, match="nowhere"):
        execute(load, model="nowhere", device="cpu")


def test_a_saved_pipeline_is_loaded(nodes, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    load = nodes["FaceMakeUpLoadPipeline"]
    (loaded,) = execute(load, model=str(tmp_path), device="cpu", dtype="bfloat16").result
    assert loaded.unet.dtype == torch.bfloat16


@pytest.mark.parametrize("prefix", ["", " ", "..", "../x", "/x", "a/../../x", "."])
def test_files_stay_below_the_output_folder(tmp_path, prefix):
    with pytest.raises(ConfigError, match="prefix"):
        next_prefix(tmp_path / "output", prefix)


def test_pictures_of_other_nodes_may_have_alpha_and_values_outside():
    batch = torch.tensor([[[[-0.5, 0.5, 1.5, 0.3]]]], requires_grad=True)
    assert as_arrays(batch)[0].tolist() == [[[0.0, 0.5, 1.0]]]


def test_the_workflow_of_the_documentation_fits_the_nodes(nodes):
    workflow = json.loads(WORKFLOW.read_text())
    kinds = {node["id"]: node["type"] for node in workflow["nodes"]}
    assert set(nodes) - FOR_A_MODEL <= set(kinds.values())
    for node in workflow["nodes"]:
        if node["type"] not in nodes:
            continue
        schema = nodes[node["type"]].GET_SCHEMA()
        known = {part.id: part.io_type for part in schema.inputs}
        assert {part["name"]: part["type"] for part in node["inputs"]}.items() <= known.items()
        assert [part["type"] for part in node.get("outputs", [])] == [part.io_type for part in schema.outputs]
        widgets = [part for part in schema.inputs if part.io_type in ("STRING", "INT", "FLOAT", "COMBO")]
        # ComfyUI adds a widget behind a seed, what happens to it after a run.
        assert len(node["widgets_values"]) == len(widgets) + sum(part.id == "seed" for part in widgets)
    for _, start, slot, end, entry, kind in workflow["links"]:
        source, target = (next(n for n in workflow["nodes"] if n["id"] == number) for number in (start, end))
        assert source["outputs"][slot]["type"] == target["inputs"][entry]["type"] == kind
