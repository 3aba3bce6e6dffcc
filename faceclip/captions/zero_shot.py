"""Glasses, beard, hat and length of hair by the CLIP towers that the user gives: which of several sentences fits best.

    zero_shot=open_clip:ViT-L-14-quickgelu/metaclip_fullcc      a model of open_clip
    zero_shot=IMAGE_TOWER,TEXT_TOWER                            two towers in this project's layout

A tower of renders (`tiny/image_tower,tiny/text_tower_l`) knows renders and no photographs.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from faceclip.captions.colors import Reading
from faceclip.errors import ConfigError
from faceclip.storage.hashes import module_hash
from faceclip.towers.image import ImageTower
from faceclip.towers.pretrained import load_tower
from faceclip.towers.text import TextTower, tokenize

SCALE = 100.0  # of cosines: where the published models' learned temperature ends (Radford et al. 2021, section 2.5)
_TEMPLATES = ("a photo of a person {}.", "a portrait of a person {}.", "someone {}.")
QUESTIONS: dict[str, dict[str, str]] = {
    "glasses": {
        "none": "without glasses",
        "round": "with round glasses",
        "square": "with square glasses",
        "sunglasses": "with dark sunglasses",
    },
    "beard": {
        "none": "without a beard",
        "stubble": "with light stubble",
        "mustache": "with a mustache",
        "full": "with a full beard",
    },
    "hat": {"none": "without a hat", "cap": "with a cap", "beanie": "with a beanie", "brimmed": "with a brimmed hat"},
    "hair_length": {
        "bald": "with a bald head",
        "short": "with short hair",
        "medium": "with shoulder length hair",
        "long": "with long hair",
    },
}


class ZeroShot:
    """Asks a pair of CLIP towers. Raises ConfigError where their embeddings have different sizes."""

    def __init__(self, image: ImageTower, text: TextTower, *, scale: float = SCALE) -> None:
        if image.config.embed_dim != text.config.embed_dim:
            raise ConfigError(
                f"zero_shot: the image tower embeds in {image.config.embed_dim} dimensions and the text tower in "
                f"{text.config.embed_dim}: give the two of one model"
            )
        self.image, self.scale = image, scale
        self.facts = f"zero-shot {module_hash(image)[:16]} {module_hash(text)[:16]}, times {scale:g}"
        self.answers = {name: _embedded(text, list(answers.values())) for name, answers in QUESTIONS.items()}

    @torch.no_grad()
    def read(self, pictures: Sequence[NDArray[np.uint8]]) -> list[dict[str, Reading]]:
        """Reads the likeliest answer to each question about portraits (S, S, 3) of one size, and its probability."""
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        seen = F.normalize(self.image(images).embedding.float(), dim=-1)
        found: list[dict[str, Reading]] = [{} for _ in pictures]
        for name, answers in QUESTIONS.items():
            chances = (self.scale * seen @ self.answers[name].T).softmax(dim=-1)
            confidence, best = chances.max(dim=-1)
            for row, (sure, number) in enumerate(zip(confidence.tolist(), best.tolist(), strict=True)):
                found[row][name] = Reading(value=list(answers)[number], confidence=sure)
        return found


@torch.no_grad()
def _embedded(text: TextTower, answers: Sequence[str]) -> Tensor:
    """Returns the mean unit embeddings (A, E) of answers over the templates."""
    embeddings = [text(tokenize([t.format(one) for one in answers])).embedding.float() for t in _TEMPLATES]
    return F.normalize(torch.stack([F.normalize(one, dim=-1) for one in embeddings]).mean(dim=0), dim=-1)


def load_zero_shot(name: str) -> ZeroShot:
    """Loads a model by the words of `zero_shot=`. Raises ConfigError for other words, and what `load_tower` raises."""
    image, comma, text = name.partition(",")
    if not comma:
        if not name.startswith("open_clip:"):
            raise ConfigError(f"zero_shot={name}: give open_clip:MODEL/WEIGHTS, or IMAGE_TOWER,TEXT_TOWER")
        image = text = name
    towers = load_tower(image, "image"), load_tower(text, "text")
    assert isinstance(towers[0], ImageTower) and isinstance(towers[1], TextTower)
    return ZeroShot(*towers)
