"""Text attention probabilities of chosen cross-attention layers, kept with their gradients for the alignment
loss.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.identity import cross_attention_layers


def layer_downsampling(unet: UNet2DConditionModel) -> dict[str, int]:
    """How much smaller than the latents each cross-attention layer's grid is: name -> 1, 2, 4, ..."""
    deepest = 2 ** (len(unet.config.block_out_channels) - 1)
    factors = {}
    for name in cross_attention_layers(unet):
        kind, *rest = name.split(".")
        index = int(rest[0]) if kind != "mid_block" else 0
        factors[name] = {"down_blocks": 2**index, "up_blocks": deepest // 2**index, "mid_block": deepest}[kind]
    return factors


def layers_at(unet: UNet2DConditionModel, factor: int) -> list[str]:
    """Cross-attention layers whose grid is `factor` times smaller than the latents.

    Face-MakeUp uses 32x32 grids of 64x64 latents: factor 2. Raises ConfigError when the UNet has no such
    layer.
    """
    factors = layer_downsampling(unet)
    chosen = [name for name, value in factors.items() if value == factor]
    if not chosen:
        raise ConfigError(
            f"this UNet has no cross-attention at factor {factor}: choose among {sorted(set(factors.values()))}"
        )
    return chosen


class _Capturing:
    """Processor that computes and stores the text attention. The inner processor computes the output."""

    def __init__(self, inner: Any, name: str, store: dict[str, Tensor]) -> None:
        self.inner = inner
        self.name = name
        self.store = store

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        text = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        self.store[self.name] = text_attention(attn, hidden_states, text)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs)


def text_attention(attn: Attention, hidden_states: Tensor, text: Tensor) -> Tensor:
    """softmax(QK^T / sqrt(d)) in fp32: hidden states (B,Q,C), text (B,L,D) -> (B,heads,Q,L)."""
    batch, queries = hidden_states.shape[:2]
    q = attn.to_q(hidden_states).view(batch, queries, attn.heads, -1).transpose(1, 2).float()
    k = attn.to_k(text).view(batch, text.shape[1], attn.heads, -1).transpose(1, 2).float()
    with torch.autocast(q.device.type, enabled=False):  # which would compute the product in 16 bits
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)


class AttentionCapture:
    """Context manager. While it is open, `maps` holds the text attention (B,heads,Q,L) of each of `layers` in the last
    forward pass.

    Enter it after the identity channel is attached. On exit it puts back the processors that it found on entry.
    """

    def __init__(self, unet: UNet2DConditionModel, layers: Iterable[str]) -> None:
        self.unet = unet
        self.layers = list(layers)
        known = cross_attention_layers(unet)
        unknown = [name for name in self.layers if name not in known]
        if unknown or not self.layers:
            raise ConfigError(f"layers must name cross-attention layers of the UNet: {unknown} are unknown")
        self.maps: dict[str, Tensor] = {}
        self._found: dict[str, Any] | None = None

    def __enter__(self) -> AttentionCapture:
        self._found = dict(self.unet.attn_processors)
        wrapped = dict(self._found)
        for name in self.layers:
            wrapped[name] = _Capturing(self._found[name], name, self.maps)
        self.unet.set_attn_processor(wrapped)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._found is not None:
            self.unet.set_attn_processor(self._found)
        self._found = None
        self.maps.clear()
