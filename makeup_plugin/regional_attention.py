"""Cross-attention to several people: text and identity of each count where the person stands.

A `RegionalContext` takes the place of the context of a UNet or ControlNet. `regional_attention` gives their
cross-attention the processors that read it, for the duration of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.identity import DecoupledAttention

_CROSS = ".attn2.processor"
Weights = Tensor | dict[int, Tensor]


@dataclass(frozen=True, kw_only=True)
class RegionalContext:
    """What B samples of K people attend to.

    texts (B,K+1,L,D): that of everything else first, then one per person. text_weights: their weights, which sum to 1.
    identities (B,K,n,D) and identity_weights: tokens of the identity channel and how much they count, None without the
    channel. Weights are (B,K) everywhere alike, or (B,K,Q) for every number of queries Q of the network's layers.
    """

    texts: Tensor
    text_weights: Weights
    identities: Tensor | None = None
    identity_weights: Weights | None = None


class RegionalAttention:
    """Processor that reads a `RegionalContext`; any other context goes to the processor that it stands before."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if not isinstance(encoder_hidden_states, RegionalContext):
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)
        if hidden_states.ndim != 3 or attention_mask is not None or attn.group_norm is not None or attn.norm_cross:
            raise ConfigError(
                "several people: this base's cross-attention (masks, norms or feature maps) has no regional form"
            )
        channel = self.inner.weights if isinstance(self.inner, DecoupledAttention) else None
        found = attend_by_regions(attn, hidden_states, encoder_hidden_states, channel)
        found = attn.to_out[1](attn.to_out[0](found))
        if attn.residual_connection:
            found = found + hidden_states
        return found / attn.rescale_output_factor


def attend_by_regions(attn: Attention, hidden_states: Tensor, context: RegionalContext, channel: Any = None) -> Tensor:
    """Weighted sum of the attention of hidden states (B,Q,C) to every text and every identity, before the output layer.

    channel: the layer's keys and values of identities with its scale; None where no identity channel is attached.
    """
    count = hidden_states.shape[1]
    query = _heads(attn, attn.to_q(hidden_states))

    def attend(states: Tensor, to_key: Any, to_value: Any, weights: Tensor) -> Tensor:
        key, value = _heads(attn, to_key(states)), _heads(attn, to_value(states))
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        # where, not a product: a place outside of a region gets nothing of it, whatever is there.
        weights = weights[:, :, None].to(found.dtype)
        return torch.where(weights == 0, torch.zeros_like(found), found * weights)

    weights = _at(context.text_weights, count)
    parts = [attend(context.texts[:, k], attn.to_k, attn.to_v, weights[:, k]) for k in range(weights.shape[1])]
    scale = 0.0 if channel is None else channel.scale[0]
    if context.identities is not None and context.identity_weights is not None and scale != 0:
        weights = scale * _at(context.identity_weights, count)
        parts += [
            attend(context.identities[:, k], channel.to_k_ip[0], channel.to_v_ip[0], weights[:, k])
            for k in range(weights.shape[1])
        ]
    return torch.stack(parts).sum(dim=0)


def weights_by_queries(weights: Tensor) -> dict[int, Tensor]:
    """Weights (B,K,h,w) at the latents' size, averaged to every halving of it: (B,K,Q) by the number of places Q."""
    found = {}
    while True:
        height, width = weights.shape[-2:]
        found[height * width] = weights.flatten(2)
        if height == width == 1:
            return found
        # Ceilings, as of the UNet's strided convolutions.
        weights = F.adaptive_avg_pool2d(weights.float(), (-(-height // 2), -(-width // 2))).to(weights.dtype)


def reads_regions(network: UNet2DConditionModel | ControlNetModel) -> bool:
    """Whether the network is within `regional_attention`."""
    found = [one for name, one in network.attn_processors.items() if name.endswith(_CROSS)]
    return bool(found) and all(isinstance(one, RegionalAttention) for one in found)


@contextmanager
def regional_attention(*networks: UNet2DConditionModel | ControlNetModel | None) -> Iterator[None]:
    """Cross-attention of the networks reads a `RegionalContext` within the block, and is as before after it."""
    present = [network for network in networks if network is not None]
    before = [dict(network.attn_processors) for network in present]
    for network, processors in zip(present, before, strict=True):
        network.set_attn_processor(
            {
                name: RegionalAttention(processor) if name.endswith(_CROSS) else processor
                for name, processor in processors.items()
            }
        )
    try:
        yield
    finally:
        for network, processors in zip(present, before, strict=True):
            network.set_attn_processor(processors)


def _at(weights: Weights, count: int) -> Tensor:
    """Weights (B,K,Q) of `count` queries, or (B,K,1)."""
    if isinstance(weights, Tensor):
        return weights[:, :, None]
    if count not in weights:
        raise ConfigError(
            f"several people: a layer has {count} queries, which is no halving of the latents' size: use another height"
            " or width"
        )
    return weights[count]


def _heads(attn: Attention, states: Tensor) -> Tensor:
    return states.unflatten(2, (attn.heads, -1)).transpose(1, 2)
