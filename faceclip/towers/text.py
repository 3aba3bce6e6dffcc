"""CLIP text tower: open_clip's `TextTransformer`, with access to the states that the joint encoder reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import QuickGELU, TextTransformer
from torch import Tensor, nn

from faceclip.cpu.sequences import project_at_once
from faceclip.storage.loading import StrictlyLoaded

VOCABULARY_SIZE = 49408
START, END, PAD = 49406, 49407, 0


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """What the text tower knows of B texts of L tokens."""

    hidden: Tensor  # (B, L, width) last layer after ln_final, pads included
    eot_state: Tensor  # (B, width) `hidden` at the end-of-text token, before the projection
    embedding: Tensor  # (B, embed_dim) eot_state through text_projection, unnormalized


@cache
def tokenizer() -> SimpleTokenizer:
    """Returns open_clip's byte-pair tokenizer (one for all towers)."""
    return SimpleTokenizer()


def tokenize(texts: str | Sequence[str], context: int = 77) -> Tensor:
    """Returns token ids (B, context) int64: start, text, end, pads of 0; longer texts are cut before the end token."""
    return tokenizer()([texts] if isinstance(texts, str) else list(texts), context_length=context)


def used_tokens(tokens: Tensor) -> Tensor:
    """Cuts the columns (B, L) after the last end-of-text token of the batch.

    A causal tower gives the same features at the remaining positions. Only the states of pads are lost.
    """
    return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


class TextTower(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Text → hidden states and embedding, by open_clip's own transformer.

    L: width 768, 12 layers, 12 heads, QuickGELU. G: width 1280, 32 layers, 20 heads, GELU, embed_dim 1280.
    `vocabulary` lists the token ids that have an embedding row of their own. All other ids share one unknown row, so
    that a tower trained on few words stays small. None means the full table. The ids are open_clip's either way.
    """

    @register_to_config
    def __init__(
        self,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        context: int = 77,
        quick_gelu: bool = True,
        embed_dim: int = 768,
        mlp_ratio: float = 4.0,
        vocabulary: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        rows = VOCABULARY_SIZE
        if vocabulary is not None:
            ids = sorted({START, END, PAD, *vocabulary})
            if ids[0] < 0 or ids[-1] >= VOCABULARY_SIZE:
                raise ValueError(f"vocabulary holds ids outside 0 … {VOCABULARY_SIZE - 1}")
            self.register_buffer("known_ids", torch.tensor(ids, dtype=torch.int32))
            rows = len(ids) + 1
        self.tower = TextTransformer(
            context_length=context,
            vocab_size=rows,
            width=width,
            heads=heads,
            layers=layers,
            mlp_ratio=mlp_ratio,
            output_dim=embed_dim,
            act_layer=QuickGELU if quick_gelu else nn.GELU,
        )
        project_at_once(self.tower)

    @property
    def unknown_row(self) -> int | None:
        """Row shared by ids outside the vocabulary; None with the full table."""
        return None if self.config.vocabulary is None else len(self.known_ids)

    def rows(self, tokens: Tensor) -> Tensor:
        """Returns embedding rows of token ids, of the same shape."""
        if self.unknown_row is None:
            return tokens
        known = self.known_ids.to(tokens.dtype)
        place = torch.searchsorted(known, tokens.contiguous()).clamp_max(len(known) - 1)
        return torch.where(known[place] == tokens, place, self.unknown_row)

    def forward(
        self, tokens: Tensor, replace_index: int | None = None, replace_with: Tensor | None = None
    ) -> TextFeatures:
        """Encodes token ids (B, L), L at most the context.

        `replace_with` (B, width) takes the place of the embedding at position `replace_index`, before the
        positional embedding is added. Raises ValueError for a wrong shape.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context:
            raise ValueError(f"expected tokens (B, at most {self.config.context}), got {tuple(tokens.shape)}")
        x = _as_autocast(self.tower.token_embedding(self.rows(tokens)))
        if replace_with is not None:
            if replace_index is None or replace_with.shape != (tokens.shape[0], self.config.width):
                raise ValueError(
                    f"replace_with must be ({tokens.shape[0]}, {self.config.width}) with a replace_index, got "
                    f"{tuple(replace_with.shape)} and {replace_index}"
                )
            before, after = x[:, :replace_index], x[:, replace_index + 1 :]
            x = torch.cat([before, replace_with.to(x.dtype).unsqueeze(1), after], dim=1)
        length = tokens.shape[1]
        x = x + _as_autocast(self.tower.positional_embedding[:length])
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        return self.features(self.tower.ln_final(self.tower.transformer(x, attn_mask=mask)), tokens)

    def features(self, hidden: Tensor, tokens: Tensor) -> TextFeatures:
        """Returns the features that follow from the states (B, L, width) of token ids (B, L)."""
        # The end token has the largest id, hence argmax finds it; pads come after it.
        eot_state = hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]
        return TextFeatures(hidden=hidden, eot_state=eot_state, embedding=eot_state @ self.tower.text_projection)


def _as_autocast(x: Tensor) -> Tensor:
    """Returns fp16 weights' embeddings in autocast's numbers, which mixes fp16 with bf16 in no operator on the CPU."""
    kind = x.device.type
    if x.dtype != torch.float16 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
