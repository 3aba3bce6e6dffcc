"""What the cross-attention of UNet and shading channel reads, made of conditions."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.regional_attention import RegionalContext, reads_regions, weights_by_queries


class Conditions(Protocol):
    """The part of `makeup_plugin.conditioning.Conditions` that attention reads."""

    @property
    def tokens(self) -> Tensor: ...
    @property
    def identity(self) -> Tensor | None: ...
    @property
    def image_tokens(self) -> Tensor | None: ...
    @property
    def identity_scale(self) -> Tensor | None: ...
    @property
    def people_tokens(self) -> Tensor | None: ...
    @property
    def people_identity(self) -> Tensor | None: ...
    @property
    def people_image_tokens(self) -> Tensor | None: ...
    @property
    def people_shares(self) -> Tensor | None: ...
    @property
    def people_scale(self) -> Tensor | None: ...
    @property
    def by_regions(self) -> bool: ...


def contexts(
    unet: UNet2DConditionModel, conditions: Conditions, channel: IdentityChannel | None, *, shaded: bool
) -> tuple[Any, Tensor | RegionalContext | None]:
    """The context of the UNet, and that of the shading channel: the identity's tokens, None without an identity.

    shaded: whether the shading channel runs. A channel of scale 0 whose tokens nobody reads does not run either.

    Raises ConfigError for a channel that is not attached or has no inputs, and for several people or a scale per
    picture outside of `regional_attention`.
    """
    silent = channel is not None and channel.scale == 0
    tokens = None if silent and not shaded else _identity_tokens(unet, conditions, channel)
    if not conditions.by_regions:
        plain = silent or tokens is None
        return (conditions.tokens if plain else (conditions.tokens, [tokens])), tokens
    if not reads_regions(unet):
        raise ConfigError("conditions of several people or with a scale per picture need regional_attention(unet)")
    if conditions.people_tokens is None or conditions.people_shares is None:
        return _scaled(conditions, tokens), tokens
    return _regional(conditions, conditions.people_tokens, conditions.people_shares, channel, tokens)


def _identity_tokens(
    unet: UNet2DConditionModel, conditions: Conditions, channel: IdentityChannel | None
) -> Tensor | None:
    if channel is None:
        return None
    if conditions.identity is None:
        if channel.scale != 0:
            raise ConfigError(
                "identity_channel is given but conditions.identity is absent: pass image_encoder to encode_conditions,"
                " or identity_channel=None"
            )
        return None
    if not channel.is_attached(unet):
        raise ConfigError(
            "the identity channel is not in the UNet: another one is, or whatever replaces attention processors"
            " (slicing, xformers, set_attn_processor) has dropped it; call identity_channel.attach(unet)"
        )
    return channel(conditions.identity, conditions.image_tokens)


def _scaled(conditions: Conditions, tokens: Tensor | None) -> RegionalContext:
    """One person per picture, whose identity counts by `identity_scale` (B,)."""
    return RegionalContext(
        texts=conditions.tokens[:, None],
        text_weights=conditions.tokens.new_ones(len(conditions.tokens), 1),
        identities=None if tokens is None else tokens[:, None],
        identity_weights=None if conditions.identity_scale is None else conditions.identity_scale[:, None],
    )


def _regional(
    conditions: Conditions,
    people: Tensor,
    people_shares: Tensor,
    channel: IdentityChannel | None,
    nobody: Tensor | None,
) -> tuple[RegionalContext, RegionalContext | None]:
    """Several people per picture. The shading channel reads a person's identity tokens where the person is, and those
    of `nobody` (B,n,D) elsewhere."""
    texts = torch.cat([conditions.tokens[:, None], people], dim=1)
    weights = weights_by_queries(people_shares)
    if channel is None or nobody is None or conditions.people_identity is None:
        return RegionalContext(texts=texts, text_weights=weights), None
    images = conditions.people_image_tokens
    tokens = channel(conditions.people_identity.flatten(0, 1), None if images is None else images.flatten(0, 1))
    tokens = tokens.unflatten(0, conditions.people_identity.shape[:2])
    scale = 1.0 if conditions.people_scale is None else conditions.people_scale[:, :, None]
    context = RegionalContext(
        texts=texts,
        text_weights=weights,
        identities=tokens,
        identity_weights={count: shares[:, 1:] * scale for count, shares in weights.items()},
    )
    return context, RegionalContext(texts=torch.cat([nobody[:, None], tokens], dim=1), text_weights=weights)
