"""Loads the frozen towers that a configuration names."""

from dataclasses import dataclass
from pathlib import Path

from faceclip import weights
from faceclip.errors import CheckpointError
from faceclip.face_encoder import FaceViT
from faceclip.image_tower import ImageTower
from faceclip.text_tower import TextTower
from train_encoder.config import TowersConfig


@dataclass(frozen=True, kw_only=True)
class Towers:
    """The frozen spaces that the joint encoder is aligned with, in evaluation mode."""

    recognizer: FaceViT
    text_l: TextTower
    text_g: TextTower
    image: ImageTower


def resolve(name: str) -> Path:
    """A directory, or the shipped weights of that name."""
    if Path(name).is_dir():
        return Path(name)
    return weights.path(name)


def load_towers(config: TowersConfig) -> Towers:
    """Raises CheckpointError when a tower is missing or when text and image towers do not share a space."""
    loaded = Towers(
        recognizer=FaceViT.from_pretrained(resolve(config.recognizer)),
        text_l=TextTower.from_pretrained(resolve(config.text_l)),
        text_g=TextTower.from_pretrained(resolve(config.text_g)),
        image=ImageTower.from_pretrained(resolve(config.image)),
    )
    text, image = loaded.text_g.config.embed_dim, loaded.image.config.embed_dim
    if text != image:
        raise CheckpointError(
            f"towers.text_g embeds in {text} dimensions and towers.image in {image}: they must be one CLIP model's"
        )
    for tower in vars(loaded).values():
        tower.requires_grad_(False).eval()
    return loaded
