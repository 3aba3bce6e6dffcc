"""Plain text conditioning of SDXL: the text towers L and G side by side, without a face."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from faceclip.towers.text import TextTower, tokenize


@dataclass(frozen=True, kw_only=True)
class TextConditioning:
    """tokens (B, 77, dL + dG): last hidden states of both towers; pooled (B, dG): G's state at the end token."""

    tokens: Tensor
    pooled: Tensor


class TextPair(nn.Module):
    """The frozen towers L and G."""

    def __init__(self, text_l: TextTower, text_g: TextTower) -> None:
        super().__init__()
        self.l, self.g = text_l, text_g
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> TextConditioning:
        """Encodes token ids (B, 77)."""
        first, second = self.l(tokens), self.g(tokens)
        hidden = torch.cat([first.hidden, second.hidden], dim=-1)
        return TextConditioning(tokens=hidden.float(), pooled=second.eot_state.float())

    def encode(self, texts: Sequence[str]) -> TextConditioning:
        """Encodes texts."""
        return self(tokenize(texts))
