"""Which positions of a text tower's context hold a phrase of a prompt."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from faceclip.errors import ConfigError

_TOKENIZER = None
_WORD = re.compile(r"[^\W\d_]+|(?:[^\w\s]|_)+")  # runs that CLIP's tokenizer merges: letters, punctuation


def phrase_token_mask(text: str, start: int, end: int, *, prefix: str = "", length: int = 77) -> Tensor:
    """Mask (length,) of the context's positions that hold text[start:end].

    `prefix` is the template that the encoder puts before the text. Spans are widened to whole words. The part beyond
    the context is cut, so the mask can be empty.
    """
    from open_clip.tokenizer import SimpleTokenizer

    if not 0 <= start < end <= len(text):
        raise ConfigError(f"span {start}:{end} does not lie in a text of {len(text)} characters")
    global _TOKENIZER
    if _TOKENIZER is None:
        _TOKENIZER = SimpleTokenizer()
    # Parts of words have other tokens than whole words.
    words = [word.span() for word in _WORD.finditer(text) if word.start() < end and word.end() > start]
    start = min([start, *(first for first, _ in words)])
    end = max([end, *(last for _, last in words)])
    before = len(_TOKENIZER.encode(prefix + text[:start]))
    through = len(_TOKENIZER.encode(prefix + text[:end]))
    mask = torch.zeros(length, dtype=torch.bool)
    # Position 0 is the start token; the last position is kept for the end token when a text is cut.
    mask[min(1 + before, length - 1) : min(1 + through, length - 1)] = True
    return mask
