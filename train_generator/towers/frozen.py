"""The finished networks that a tower's training stands on: in a folder that is given, or the shipped ones."""

from pathlib import Path

from faceclip import weights
from faceclip.towers.face import FaceViT
from train_generator.loading import load_frozen


def recognizer_at(folder: str) -> FaceViT:
    """The face recognizer in `folder` or shipped. Raises CheckpointError where there is none."""
    path = Path(folder) if folder else weights.path("tiny/recognizer")
    return load_frozen(FaceViT, path, "recognizer", "train it by `python -m train_encoder.towers.recognizer`")
