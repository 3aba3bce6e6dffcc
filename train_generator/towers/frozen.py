"""Loads the finished networks that a tower's training needs, from a given folder or from the shipped weights."""

from pathlib import Path

from faceclip import weights
from faceclip.towers.face import FaceViT
from train_generator.loading import load_frozen


def recognizer_at(folder: str) -> FaceViT:
    """Loads the face recognizer in `folder` ("": the shipped one). Raises CheckpointError if there is none."""
    path = Path(folder) if folder else weights.path("tiny/recognizer")
    return load_frozen(FaceViT, path, "recognizer", "train it by `python -m train_encoder.towers.recognizer`")
