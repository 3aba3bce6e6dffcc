"""The formulae of the memory plan count what autograd really keeps."""

import importlib.util
from pathlib import Path

import pytest
import torch

from faceclip.towers.image import ImageTower
from faceclip.training import StepContext
from train_encoder.config import LossConfig
from train_encoder.task import EncoderTask

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("width", "layers"), [(32, 1), (64, 3)])
def test_activations_are_what_the_formula_says(memory, width, layers):
    torch.manual_seed(0)
    settings = memory.EncoderConfig()
    settings.fusion.layers = layers
    model, settings = memory.small(width, settings)
    tower = ImageTower(image_size=16, patch_size=8, width=32, layers=1, heads=2, embed_dim=width)
    task = EncoderTask(model, tower, LossConfig(), None, 0)
    batch = memory.random_chunk(model, 4, 4)
    context = StepContext(step=0, steps=1, micro_step=0, device=torch.device("cpu"), generator=torch.Generator())
    own = [*task.modules.parameters(), *task.modules.buffers()]
    measured = memory.saved_bytes(lambda: task.encode(batch, context), own)
    assert measured == pytest.approx(16 * 4 * memory.activations(model, settings), rel=0.03)


@pytest.mark.parametrize(("preset", "least", "most"), [("bigg14", 1.05, 1.15), ("faceclip", 1.0, 1.02)])
def test_plan_of_the_full_size_preset_is_what_its_step_keeps(memory, preset, least, most):
    """One query on the meta device, which needs no memory: within 1 %, and with the attention that this device chooses
    by itself, which keeps scaled queries and keys and the weights too, more, above all in the text towers."""
    predicted, counted = memory.count_full_size(preset, 1)
    plain = counted.pop("activations, plain attention")
    assert counted.keys() == {
        "weights",
        "gradients",
        "Adam's moments",
        "features, their gradients",
        "activations of a chunk",
    }
    for name, size in counted.items():
        assert size == pytest.approx(predicted[name], rel=0.01), name
    assert least < plain / predicted["activations of a chunk"] < most
    assert counted["weights"] > 5e9  # the real sizes: 1.36 billion float32
