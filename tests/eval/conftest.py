"""A small untrained joint encoder as `python -m train_encoder` exports it."""

from pathlib import Path

import pytest
import torch

from faceclip.encoder import FaceCLIP
from faceclip.face_encoder import FaceViT
from faceclip.image_tower import ImageTower
from faceclip.text_tower import TextTower


@pytest.fixture(scope="session")
def joint_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with FaceCLIP and its image tower, random weights."""
    directory = tmp_path_factory.mktemp("joint")
    torch.manual_seed(0)
    face = FaceViT(image_size=36, patch_size=9, width=32, depth=1, heads=2, embedding_dim=16)
    words = list(range(256, 3000))
    text_l = TextTower(width=32, layers=1, heads=2, quick_gelu=True, embed_dim=24, vocabulary=words)
    text_g = TextTower(width=48, layers=1, heads=2, quick_gelu=False, embed_dim=24, vocabulary=words)
    FaceCLIP.from_components(face, text_l, text_g, fusion={}, joint={}).save_pretrained(directory)
    tower = ImageTower(image_size=32, patch_size=8, width=32, layers=1, heads=2, embed_dim=24)
    tower.save_pretrained(directory / "image_tower")
    return directory
