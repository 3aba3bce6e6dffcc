"""Text embeddings and sizes that the caller gives in place of the joint encoder's and the picture's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.arguments import dense_floats, whole_number
from makeup_plugin.conditioning import Conditions


@dataclass(frozen=True, kw_only=True)
class TextEmbeddings:
    """Context tokens (N,T,D) and, for a UNet with text_time conditioning, pooled states (N,P)."""

    tokens: Tensor
    pooled: Tensor | None

    def __len__(self) -> int:
        return len(self.tokens)

    def put_into(self, conditions: Conditions) -> Conditions:
        """The conditions with these texts in place of their own."""
        tokens = self.tokens.to(conditions.tokens)
        if self.pooled is None or conditions.pooled is None:
            return replace(conditions, tokens=tokens)
        return replace(conditions, tokens=tokens, pooled=self.pooled.to(conditions.pooled))

    def repeat(self, times: int) -> TextEmbeddings:
        """Each text `times` times in a row."""
        pooled = None if self.pooled is None else self.pooled.repeat_interleave(times, dim=0)
        return TextEmbeddings(tokens=self.tokens.repeat_interleave(times, dim=0), pooled=pooled)


def text_embeddings(
    unet: UNet2DConditionModel, tokens: Tensor | None, pooled: Tensor | None, *, prefix: str = ""
) -> TextEmbeddings | None:
    """The arguments `{prefix}prompt_embeds` and `{prefix}pooled_prompt_embeds`, or None where they are not given.

    Raises ConfigError, which names the argument, for other forms than those of the UNet.
    """
    name, pooled_name = f"{prefix}prompt_embeds", f"{prefix}pooled_prompt_embeds"
    needs_pooled = unet.config.get("addition_embed_type") == "text_time"
    if tokens is None:
        if pooled is not None:
            raise ConfigError(f"{pooled_name} belongs to {name}: give {name} too, or leave it out")
        return None
    _check_tensor(name, tokens, 3, unet.config.cross_attention_dim)
    if needs_pooled and pooled is None:
        raise ConfigError(f"{name} needs {pooled_name}: give the pooled state of the same text")
    if pooled is not None and not needs_pooled:
        raise ConfigError(f"{pooled_name}: this UNet reads no pooled text; leave it out")
    if pooled is not None:
        config = unet.config
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        _check_tensor(pooled_name, pooled, 2, width)
        if len(pooled) != len(tokens):
            raise ConfigError(
                f"{pooled_name} has {len(pooled)} rows and {name} {len(tokens)}: give one of each per text"
            )
    return TextEmbeddings(tokens=tokens, pooled=pooled)


def size_ids(
    original: Sequence[int] | None,
    crop: Sequence[int],
    target: Sequence[int] | None,
    *,
    height: int,
    width: int,
    prefix: str = "",
) -> Tensor:
    """SDXL's size conditioning (6,) of the arguments `{prefix}original_size`, `{prefix}crops_coords_top_left` and
    `{prefix}target_size`; a size None is that of the picture. Raises ConfigError, which names the argument."""
    given = {"original_size": original, "crops_coords_top_left": crop, "target_size": target}
    values: list[int] = []
    for name, pair in given.items():
        values += (height, width) if pair is None else _pair(prefix + name, pair)
    return torch.tensor(values, dtype=torch.float32)


def with_size_ids(conditions: Conditions, ids: Tensor) -> Conditions:
    """The conditions with `ids` (6,) in every row, or as they are where the UNet reads no sizes (SD 1.5)."""
    if conditions.time_ids is None:
        return conditions
    return replace(conditions, time_ids=ids.to(conditions.time_ids).repeat(len(conditions), 1))


def _pair(name: str, value: Any) -> tuple[int, int]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) != 2:
        raise ConfigError(f"{name} must be two whole numbers of px, got {value!r}")
    return whole_number(name, value[0]), whole_number(name, value[1])


def _check_tensor(name: str, value: Any, dimensions: int, width: int) -> None:
    if not isinstance(value, Tensor) or value.ndim != dimensions or value.shape[-1] != width or not len(value):
        form = f"(texts, {'tokens, ' * (dimensions - 2)}{width})"
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{name} must be a tensor {form} for this UNet, got {found}")
    dense_floats(name, value)
