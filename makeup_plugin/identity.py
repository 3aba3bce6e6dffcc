"""The identity channel gives the UNet the person's identity as a few extra cross-attention tokens.

An identity embedding, and in one form the image tokens of the face, become `num_tokens` context tokens. Every
cross-attention layer attends to them with keys and values of its own and adds the result to the text attention,
multiplied by a scale that you choose at run time (IP-Adapter, Ye et al. 2023, arXiv:2308.06721). Three forms of the
projection are published:

    "perceiver"  identity and image tokens: IP-Adapter-FaceID-Plus and its V2, Face-MakeUp, and what we train
    "mlp"        identity alone: IP-Adapter-FaceID
    "resampler"  identity alone, with its length: InstantID

The channel owns all its weights. `attach` puts thin processors that only refer to them into the UNet. The UNet's own
state dict therefore stays that of the base model, and nothing is stored or trained twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import (
    IPAdapterFaceIDImageProjection,
    IPAdapterFaceIDPlusImageProjection,
    IPAdapterPlusImageProjection,
)
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.loading import StrictlyLoaded
from makeup_plugin.views import VIEWS

FORMS = ("perceiver", "mlp", "resampler")
NOBODY = ("zero_tokens", "zero_image")
_CROSS_ATTENTION = re.compile(r".*\battn2\.processor$")


def cross_attention_layers(unet: UNet2DConditionModel) -> dict[str, int]:
    """Names of the UNet's cross-attention layers (as in `unet.attn_processors`) and their widths, in module order.

    For a compiled UNet these are the names of the original.
    """
    modules = dict(unwrap_module(unet).named_modules())
    return {
        name: modules[name.removesuffix(".processor")].inner_dim
        for name in unet.attn_processors
        if _CROSS_ATTENTION.match(name)
    }


class DecoupledAttention:
    """Attention processor: text attention plus scaled identity attention, with weights that belong to the channel.

    This class is not an `nn.Module`, because a module would register the channel's weights inside the UNet as well.
    With plain text states in place of the pair (text, [identity tokens]) it equals the base model's attention, bit for
    bit.
    """

    def __init__(self, weights: IPAdapterAttnProcessor2_0) -> None:
        self.weights = weights
        self._text_only = AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | tuple[Tensor, list[Tensor]] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        scale: float = 1.0,
        ip_adapter_masks: Tensor | None = None,
    ) -> Tensor:
        if not isinstance(encoder_hidden_states, tuple):
            return self._text_only(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return self.weights(
            attn,
            hidden_states,
            encoder_hidden_states,
            attention_mask,
            temb,
            ip_adapter_masks=ip_adapter_masks,
        )


class IdentityChannel(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Projection of the identity, and the keys and values of every cross-attention layer.

    Args:
        layer_names: cross-attention layers of the UNet, as in `unet.attn_processors`.
        layer_widths: width of each of them.
        cross_attention_dim: width of the UNet's context.
        identity_dim: width of the identity embedding.
        image_dim: width of the image tokens; None in the forms that read none.
        num_tokens: identity tokens that the UNet sees.
        depth, heads, dim_head: sizes of the perceiver or the resampler.
        shortcut: add the perceiver's output to the projected identity (FaceID-Plus V2) in place of replacing it.
        form: "perceiver", "mlp" or "resampler", as the module's text says.
        hidden_dim: width of the resampler; None for heads * dim_head.
        normalized: whether the identity is brought to length one before the channel reads it.
        nobody: what the channel was trained to read where there is nobody, beside an identity of zeros: "zero_tokens",
            or "zero_image" for the image tower's tokens of an image that is zero after normalization.
        view: what its image tower sees of a photo, "aligned", "square" or "picture" (see `makeup_plugin.views`).

    Raises ConfigError for an unknown form, `nobody` or view, or an image_dim that the form does not have.
    """

    @register_to_config
    def __init__(
        self,
        *,
        layer_names: list[str],
        layer_widths: list[int],
        cross_attention_dim: int,
        identity_dim: int,
        image_dim: int | None = None,
        num_tokens: int = 4,
        depth: int = 4,
        heads: int = 12,
        dim_head: int = 64,
        shortcut: bool = True,
        form: str = "perceiver",
        hidden_dim: int | None = None,
        normalized: bool = True,
        nobody: str = "zero_tokens",
        view: str = "aligned",
    ) -> None:
        super().__init__()
        self._remembered: list[tuple[Tensor, Tensor | None, Tensor]] | None = None
        if len(layer_names) != len(layer_widths):
            raise ConfigError(f"layer_names has {len(layer_names)} entries but layer_widths has {len(layer_widths)}")
        if form not in FORMS:
            raise ConfigError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        if view not in VIEWS:
            raise ConfigError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
        if nobody not in NOBODY:
            raise ConfigError(f"nobody must be one of {', '.join(NOBODY)}, got {nobody!r}")
        if (image_dim is None) == (form == "perceiver"):
            raise ConfigError(f"image_dim={image_dim} does not fit form {form!r}: a perceiver alone reads image tokens")
        self.projection: nn.Module
        if form == "mlp":
            self.projection = IPAdapterFaceIDImageProjection(
                image_embed_dim=identity_dim, cross_attention_dim=cross_attention_dim, mult=2, num_tokens=num_tokens
            )
        elif form == "resampler":
            self.projection = IPAdapterPlusImageProjection(
                embed_dims=identity_dim,
                output_dims=cross_attention_dim,
                hidden_dims=hidden_dim or heads * dim_head,
                depth=depth,
                dim_head=dim_head,
                heads=heads,
                num_queries=num_tokens,
            )
        else:
            self.projection = IPAdapterFaceIDPlusImageProjection(
                embed_dims=cross_attention_dim,
                output_dims=cross_attention_dim,
                hidden_dims=image_dim,
                id_embeddings_dim=identity_dim,
                depth=depth,
                dim_head=dim_head,
                heads=heads,
                num_tokens=num_tokens,
            )
            self.projection.shortcut = shortcut
        self.attention = nn.ModuleList(
            IPAdapterAttnProcessor2_0(width, cross_attention_dim, num_tokens=(num_tokens,)) for width in layer_widths
        )

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        *,
        identity_dim: int,
        image_dim: int | None = None,
        heads: int | None = None,
        dim_head: int = 64,
        **settings: Any,
    ) -> IdentityChannel:
        """A new channel for `unet`, whose keys and values start as copies of those of the text.

        `heads=None` means cross_attention_dim // dim_head. settings: further arguments of the class.
        """
        layers = cross_attention_layers(unet)
        width = unet.config.cross_attention_dim
        if not layers or not isinstance(width, int):
            raise ConfigError(f"unet must have attn2 layers and one cross_attention_dim, got {width!r}")
        channel = cls(
            layer_names=list(layers),
            layer_widths=list(layers.values()),
            cross_attention_dim=width,
            identity_dim=identity_dim,
            image_dim=image_dim,
            heads=heads or max(1, width // dim_head),
            dim_head=dim_head,
            **settings,
        )
        modules = dict(unwrap_module(unet).named_modules())
        with torch.no_grad():
            for name, weights in zip(layers, channel.attention, strict=True):
                attn = modules[name.removesuffix(".processor")]
                weights.to_k_ip[0].weight.copy_(_base(attn.to_k).weight)
                weights.to_v_ip[0].weight.copy_(_base(attn.to_v).weight)
        return channel

    @property
    def scale(self) -> float:
        """Weight of the identity attention, the largest where layers differ. At 0 it does not run, which gives the base
        model's output."""
        return max(self.layer_scales, key=abs)

    @scale.setter
    def scale(self, value: float) -> None:
        for weights in self.attention:
            weights.scale = [float(value)]

    @property
    def layer_scales(self) -> list[float]:
        """Weight of the identity attention of each layer, in the order of `config.layer_names`."""
        return [weights.scale[0] for weights in self.attention]

    @layer_scales.setter
    def layer_scales(self, values: Sequence[float]) -> None:
        for weights, value in zip(self.attention, values, strict=True):
            weights.scale = [float(value)]

    @property
    def shortcut_scale(self) -> float:
        """Weight of what the perceiver adds to the projected identity. Only a perceiver with a shortcut has one."""
        return float(getattr(self.projection, "shortcut_scale", 1.0))

    @shortcut_scale.setter
    def shortcut_scale(self, value: float) -> None:
        if value != 1 and not self.has_shortcut:
            raise ConfigError(
                f"shortcut_scale={value}, but this identity channel has no shortcut (form {self.config.form}, shortcut"
                f" {self.config.shortcut}): leave shortcut_scale out"
            )
        self.projection.shortcut_scale = float(value)

    @property
    def has_shortcut(self) -> bool:
        """Whether the perceiver's output is added to the projected identity."""
        return bool(getattr(self.projection, "shortcut", False))

    @property
    def reads_image(self) -> bool:
        """Whether the channel reads image tokens beside the identity."""
        return self.config.form == "perceiver"

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """While it is open, the same input tensors give the tokens of an earlier pass, which is not run again.

        For the steps of one call, within which neither the inputs nor the weights change.
        """
        before, self._remembered = self._remembered, []
        try:
            yield
        finally:
            self._remembered = before

    def forward(self, identity: Tensor, image_tokens: Tensor | None = None) -> Tensor:
        """Identity (B, identity_dim) and, where the form reads them, image tokens (B, P, image_dim) -> (B, num_tokens,
        context).

        A dropped identity is a row of zeros. It takes the same path and has no learned embedding of its own.
        """
        if self._remembered is None or torch.is_grad_enabled():
            return self._project(identity, image_tokens)
        for first, second, tokens in self._remembered:
            if first is identity and second is image_tokens:
                return tokens
        tokens = self._project(identity, image_tokens)
        self._remembered = [(identity, image_tokens, tokens), *self._remembered[:3]]
        return tokens

    def _project(self, identity: Tensor, image_tokens: Tensor | None) -> Tensor:
        if identity.ndim != 2 or identity.shape[1] != self.config.identity_dim:
            raise ConfigError(f"identity must be (B, {self.config.identity_dim}), got {tuple(identity.shape)}")
        if not self.reads_image:
            if image_tokens is not None:
                raise ConfigError(f"image_tokens are given, but a channel of form {self.config.form} reads none")
            identity = identity.to(next(self.projection.parameters()).dtype)
            return self.projection(identity[:, None] if self.config.form == "resampler" else identity)
        if image_tokens is None or image_tokens.ndim != 3 or image_tokens.shape[2] != self.config.image_dim:
            found = None if image_tokens is None else tuple(image_tokens.shape)
            raise ConfigError(f"image_tokens must be (B, P, {self.config.image_dim}), got {found}")
        if identity.shape[0] != image_tokens.shape[0]:
            raise ConfigError(f"identity has {identity.shape[0]} rows but image_tokens has {image_tokens.shape[0]}")
        # diffusers' projection takes its second input as an attribute shaped (batch, images per sample,
        # tokens, width).
        self.projection.clip_embeds = image_tokens[:, None].to(self.projection.proj_in.weight.dtype)
        try:
            return self.projection(identity)
        finally:
            self.projection.clip_embeds = None

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Let the UNet's cross-attention read identity tokens. Raises what `check_layers` raises."""
        self.check_layers(unet)
        processors = dict(unet.attn_processors)
        for name, weights in zip(self.config.layer_names, self.attention, strict=True):
            processors[name] = DecoupledAttention(weights)
        unet.set_attn_processor(processors)

    def check_layers(self, unet: UNet2DConditionModel) -> None:
        """Raises CheckpointError when the UNet's cross-attention is not that of the channel."""
        layers = cross_attention_layers(unet)
        wanted = dict(zip(self.config.layer_names, self.config.layer_widths, strict=True))
        if unet.config.cross_attention_dim != self.config.cross_attention_dim:
            raise CheckpointError(
                f"identity channel: cross_attention_dim is {self.config.cross_attention_dim} but the UNet has"
                f" {unet.config.cross_attention_dim}; use the base model that the channel was trained on"
            )
        if layers != wanted:
            name = _first_difference(wanted, layers)
            raise CheckpointError(
                f"identity channel: layer {name} is {wanted.get(name, 'absent')} wide in the channel and"
                f" {layers.get(name, 'absent')} in the UNet; use the base model that the channel was trained on"
            )

    def is_attached(self, unet: UNet2DConditionModel) -> bool:
        """Whether this channel, and no other, sits in the UNet, also below a processor that captures attention."""
        network = unwrap_module(unet)  # asked at every step: walk to the layers, not through all modules
        for name, weights in zip(self.config.layer_names, self.attention, strict=True):
            try:
                processor = network.get_submodule(name.removesuffix(".processor")).processor
            except AttributeError:
                return False
            processor = getattr(processor, "inner", processor)
            if not isinstance(processor, DecoupledAttention) or processor.weights is not weights:
                return False
        return True


def detach_identity(unet: UNet2DConditionModel) -> None:
    """Undo `IdentityChannel.attach`: put plain attention back into every layer that a channel had taken."""
    processors = {
        name: AttnProcessor2_0() if isinstance(processor, DecoupledAttention) else processor
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)


def _base(linear: nn.Module) -> nn.Module:
    """The original layer under a LoRA wrapper."""
    return getattr(linear, "base_layer", linear)


def _first_difference(first: dict[str, int], second: dict[str, int]) -> str:
    names: Iterable[str] = [*first, *(name for name in second if name not in first)]
    return next((name for name in names if first.get(name) != second.get(name)), "order of layers")
