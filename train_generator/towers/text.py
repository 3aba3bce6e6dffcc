"""The base model's text conditioning: both towers side by side, as SDXL has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from faceclip.data.arrays import FaceArrays
from faceclip.towers.text import TextTower, tokenize
from train_generator.loading import load_frozen

# How often each kind of caption is drawn: short, long, emotion, both.
CAPTION_ODDS = (0.2, 0.35, 0.1, 0.35)


@dataclass(frozen=True, kw_only=True)
class TextConditioning:
    """tokens (B, 77, dL + dG): last hidden states of both towers; pooled (B, dG): G's state at the end token."""

    tokens: Tensor
    pooled: Tensor


class TextTowers(nn.Module):
    """The frozen towers L and G. Raises CheckpointError for a missing or damaged folder."""

    def __init__(self, text_l: Path, text_g: Path) -> None:
        super().__init__()
        remedy = "train it by `python -m train_encoder.towers.clip`"
        self.l = load_frozen(TextTower, text_l, "text_l", remedy)
        self.g = load_frozen(TextTower, text_g, "text_g", remedy)
        self.eval()

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> TextConditioning:
        """Encode token ids (B, 77)."""
        first, second = self.l(tokens), self.g(tokens)
        hidden = torch.cat([first.hidden, second.hidden], dim=-1)
        return TextConditioning(tokens=hidden.float(), pooled=second.eot_state.float())

    def encode(self, texts: Sequence[str]) -> TextConditioning:
        """Encode texts."""
        return self(tokenize(texts))


def tokenized_captions(arrays: FaceArrays, kinds: int = len(CAPTION_ODDS)) -> NDArray[np.int32]:
    """Token ids (N, kinds, 77) of the captions of every portrait."""
    texts = [caption.text for row in arrays.captions for caption in row[:kinds]]
    unique, place = np.unique(np.array(texts), return_inverse=True)
    tokens = tokenize(unique.tolist()).numpy().astype(np.int32)
    return tokens[place].reshape(len(arrays), kinds, -1)
