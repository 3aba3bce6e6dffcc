"""Loads the finished networks that a tower's training needs, from a given folder or from the shipped weights."""

from pathlib import Path

from diffusers import ModelMixin

from faceclip import weights
from faceclip.errors import ConfigError
from faceclip.towers.face import FaceViT
from train_generator.loading import load_frozen


def recognizer_at(folder: str) -> FaceViT:
    """Loads the face recognizer in `folder` ("": the shipped one). Raises CheckpointError if there is none."""
    path = Path(folder) if folder else weights.path("tiny/recognizer")
    return load_frozen(FaceViT, path, "recognizer", "train it by `python -m train_encoder.towers.recognizer`")


def start_from(model: ModelMixin, folder: Path) -> ModelMixin:
    """Loads the weights of an earlier export of the same command into a new network, and returns that export.

    Raises CheckpointError if there is none, and ConfigError if it has other sizes.
    """
    earlier = load_frozen(type(model), folder, "init", "give an export of this command, or leave init out")
    state = earlier.state_dict()
    if {key: value.shape for key, value in state.items()} != {k: v.shape for k, v in model.state_dict().items()}:
        raise ConfigError(f"init: the network in {folder} has other sizes than this configuration's model")
    model.load_state_dict(state)
    return earlier
