"""Loads the frozen towers that a configuration names."""

from dataclasses import dataclass

from faceclip.errors import CheckpointError
from faceclip.towers.image import ImageTower
from faceclip.towers.pretrained import load_tower
from faceclip.towers.recognizers import FaceEncoder
from faceclip.towers.text import TextTower
from train_encoder.config import TowersConfig


@dataclass(frozen=True, kw_only=True)
class Towers:
    """The frozen towers with whose spaces the joint encoder is aligned, in evaluation mode."""

    recognizer: FaceEncoder
    text_l: TextTower
    text_g: TextTower
    image: ImageTower


def load_towers(config: TowersConfig) -> Towers:
    """Loads the towers. Raises CheckpointError if one is missing, or if text and image tower do not share a space."""
    loaded = Towers(
        recognizer=load_tower(config.recognizer, "face"),
        text_l=load_tower(config.text_l, "text"),
        text_g=load_tower(config.text_g, "text"),
        image=load_tower(config.image, "image"),
    )
    check_space(loaded.text_g, loaded.image, f"towers.text_g={config.text_g}", f"towers.image={config.image}")
    return loaded


def check_space(text: TextTower, image: ImageTower, text_name: str, image_name: str) -> None:
    """Raises CheckpointError unless a text and an image tower embed in the same number of dimensions."""
    if text.config.embed_dim != image.config.embed_dim:
        raise CheckpointError(
            f"{text_name} embeds in {text.config.embed_dim} dimensions and {image_name} in {image.config.embed_dim}: "
            "they must be one CLIP model's; name its other tower"
        )
