"""The identity channel in a MODEL of ComfyUI: what its cross-attention adds, and where.

ComfyUI keeps the UNets of Stable Diffusion 1.5 and SDXL in the layout of their first release (input, middle and output
blocks). The cross-attention layers are those of diffusers under other names. Nothing of ComfyUI is imported here.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceclip.errors import CheckpointError, ConfigError
from makeup_plugin.arguments import number
from makeup_plugin.calls.encode import tokens_of_nobody
from makeup_plugin.calls.identify import check_identity, stacked_features
from makeup_plugin.conditioning import Conditions, concatenate
from makeup_plugin.encoding import EncodedFaces, encode_conditions
from makeup_plugin.identities import Identity
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.turns import change_in_turn, held

logger = logging.getLogger(__name__)
_ANY_SIZE = 64  # px: the size conditioning of these conditions is never read, ComfyUI makes its own


class Place(NamedTuple):
    """A cross-attention layer of ComfyUI: "input", "middle" or "output", the block, and the transformer within it."""

    part: str
    block: int
    transformer: int


class Window(NamedTuple):
    """The noise levels, first and last, between which the identity counts. Noise falls from `first` to `last`."""

    first: float
    last: float


class IdentityAttention:
    """What replaces one cross-attention layer: the text attention plus scaled attention over the identity's tokens.

    keys, values: (2,n,C) of nobody, which unconditional rows read, and of the person. scale: weight of the identity.
    window: None for all noise levels. inner: what another node has put into this layer, which then computes the text
    attention.
    """

    def __init__(self, keys: Tensor, values: Tensor, scale: float, window: Window | None, inner: Any = None) -> None:
        self.keys, self.values = keys, values
        self.scale, self.window, self.inner = scale, window, inner

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """ComfyUI's call: projected queries (B,Q,C), keys and values of the text (B,T,C) -> (B,Q,C) before the output
        projection.

        Raises ConfigError where ComfyUI does not say which rows are unconditional.
        """
        heads = extra_options["n_heads"]
        text = _attention(q, k, v, heads) if self.inner is None else self.inner(q, k, v, extra_options)
        if self.scale == 0 or not self._counts(extra_options):
            return text
        rows = self._rows(q, extra_options)
        self.keys, self.values = self.keys.to(q), self.values.to(q)  # moves them once
        return text + self.scale * _attention(q, self.keys[rows], self.values[rows], heads)

    def _counts(self, extra_options: dict[str, Any]) -> bool:
        if (sigmas := extra_options.get("sigmas")) is None:
            raise ConfigError("transformer_options hold no sigmas: sample with a sampler of ComfyUI")
        if self.window is None:
            return True  # without a look at the noise level, for which each layer would wait for the device
        return self.window.last <= float(sigmas.max()) <= self.window.first

    def _rows(self, q: Tensor, extra_options: dict[str, Any]) -> Tensor:
        """For each row of the batch 1 where it is conditional, and 0 elsewhere."""
        kinds = extra_options.get("cond_or_uncond")
        if not kinds or len(q) % len(kinds):
            raise ConfigError(
                f"cond_or_uncond={kinds} does not divide a batch of {len(q)}: sample with a sampler of ComfyUI"
            )
        return (torch.tensor(kinds, device=q.device) == 0).long().repeat_interleave(len(q) // len(kinds))


def apply_identity(
    model: Any, pipeline: FaceMakeUpPipeline, identity: Identity, *, scale: float, start: float, end: float
) -> Any:
    """A clone of a MODEL whose cross-attention also reads the person's identity tokens.

    scale: weight of the identity. start, end: shares of the schedule in [0,1] between which it counts. A warning tells
    of a pipeline with LoRA, which the MODEL does not get.

    Raises ConfigError for a pipeline without an identity channel, an identity that other networks made, shares out of
    order, and within a call of the pipeline; and CheckpointError for a MODEL whose cross-attention is not that of the
    pipeline's base.
    """
    channel = pipeline.identity_channel
    if channel is None:
        raise ConfigError("pipeline has no identity_channel: nothing of it can be applied to a MODEL")
    scale, start, end = number("identity_scale", scale), number("start", start), number("end", end)
    if not 0 <= start < end <= 1:
        raise ConfigError(f"start={start:g} and end={end:g} must be shares of the schedule, 0 ≤ start < end ≤ 1")
    places = comfy_places(channel, pipeline.unet.config.layers_per_block)
    check_model(model, dict(zip(places, channel.config.layer_widths, strict=True)), channel.config.cross_attention_dim)
    if any(".lora_" in name for name, _ in pipeline.unet.named_parameters()):
        logger.warning(
            "the pipeline's UNet has LoRA, with which its identity channel was trained, and the MODEL does not get it:"
            " load the LoRA file with ComfyUI's own loader"
        )
    schedule = model.get_model_object("model_sampling")
    whole = start == 0 and end == 1
    window = None if whole else Window(schedule.percent_to_sigma(start), schedule.percent_to_sigma(end))
    with held(pipeline), torch.no_grad():
        tokens = identity_tokens(pipeline, identity)
        added = [(weights.to_k_ip[0](tokens), weights.to_v_ip[0](tokens)) for weights in channel.attention]
    patched = model.clone()
    present = patched.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    for place, (keys, values) in zip(places, added, strict=True):
        inner = present.get(tuple(place), present.get((place.part, place.block)))
        patch = IdentityAttention(keys, values, scale, window, inner)
        patched.set_model_attn2_replace(patch, place.part, place.block, place.transformer)
    return patched


def comfy_places(channel: IdentityChannel, layers_per_block: Any) -> list[Place]:
    """Where ComfyUI has each layer of the channel, in the order of `channel.config.layer_names`.

    Raises ConfigError for a base whose blocks have different numbers of layers, which ComfyUI does not load.
    """
    if not isinstance(layers_per_block, int):
        raise ConfigError(
            f"pipeline: unet has layers_per_block {layers_per_block}; ComfyUI's UNets have one number for all blocks"
        )
    return [_place(name, layers_per_block + 1) for name in channel.config.layer_names]


def check_model(model: Any, wanted: dict[Place, int], context: int) -> None:
    """Raises CheckpointError unless the MODEL has cross-attention of these widths, with keys of `context` inputs, in
    these places and no others."""
    network = model.get_model_object("diffusion_model")
    parts = {"input": "input_blocks", "middle": "middle_block", "output": "output_blocks"}
    if not all(isinstance(getattr(network, name, None), nn.Module) for name in parts.values()):
        raise CheckpointError(
            f"model is a {type(network).__name__} and no UNet of Stable Diffusion 1.5 or SDXL: load the base of the"
            " pipeline"
        )
    found: dict[Place, tuple[int, int]] = {}
    for part, name in parts.items():
        blocks = [network.middle_block] if part == "middle" else getattr(network, name)
        for block, layers in enumerate(blocks):
            transformers = next((one.transformer_blocks for one in layers if hasattr(one, "transformer_blocks")), ())
            for index, transformer in enumerate(transformers):
                found[Place(part, block, index)] = tuple(transformer.attn2.to_k.weight.shape)
    for place in sorted({*found, *wanted}):
        width = (wanted[place], context) if place in wanted else "absent"
        if found.get(place, "absent") != width:
            raise CheckpointError(
                f"model: cross-attention {place.part} {place.block}, transformer {place.transformer}, is"
                f" {found.get(place, 'absent')} and the identity channel's {width} (width, context): load the base"
                " of the pipeline"
            )


@change_in_turn
def identity_tokens(pipeline: FaceMakeUpPipeline, identity: Identity) -> Tensor:
    """Tokens (2,n,D) that the identity channel makes of nobody, as in the pipeline's unconditional half, and of the
    person, with the whole shortcut. It waits for calls of other threads.

    Raises ConfigError for an identity that other networks made, and within a call of the same thread.
    """
    conditions = _conditions(pipeline, "", identity)
    nobody = conditions.drop_identity(torch.ones(1, dtype=torch.bool), tokens_of_nobody(pipeline))
    rows = concatenate([nobody, conditions])
    channel = pipeline.identity_channel
    if channel is None or rows.identity is None:
        raise ConfigError("pipeline has no identity_channel: nothing of it can be applied to a MODEL")
    channel.shortcut_scale = 1.0  # a call leaves its own behind
    with torch.no_grad():
        return channel(rows.identity, rows.image_tokens)


@change_in_turn
def encode_prompt(pipeline: FaceMakeUpPipeline, prompt: str, identity: Identity | None) -> list[list[Any]]:
    """ComfyUI's CONDITIONING of a prompt by the pipeline's own text side: a joint encoder puts the person into it.

    Without a person this is the unconditional path, as for a negative prompt. It waits for calls of other threads.

    Raises ConfigError for an identity that other networks made, and within a call of the same thread.
    """
    conditions = _conditions(pipeline, prompt, identity)
    extra = {} if conditions.pooled is None else {"pooled_output": conditions.pooled.float().cpu()}
    return [[conditions.tokens.float().cpu(), extra]]


@torch.no_grad()
def _conditions(pipeline: FaceMakeUpPipeline, prompt: str, identity: Identity | None) -> Conditions:
    """The conditions of one picture, made as the pipeline makes them."""
    channel, device = pipeline.identity_channel, pipeline._execution_device
    reads_image = channel is not None and channel.reads_image
    encoded = None
    if identity is not None:
        check_identity(pipeline, identity, "identity")
        tokens = identity.image_tokens
        encoded = EncodedFaces(
            features=stacked_features([identity.features], device),
            image_tokens=tokens.to(device) if reads_image and tokens is not None else None,
            has_face=torch.ones(1, dtype=torch.bool),
        )
    conditions = encode_conditions(
        pipeline.text_side,
        [prompt],
        None,
        height=_ANY_SIZE,
        width=_ANY_SIZE,
        image_encoder=pipeline.image_encoder if reads_image else None,
        encoded=encoded,
        identity_dim=None if channel is None else channel.config.identity_dim,
        with_identity=channel is not None,
        normalized=channel is None or channel.config.normalized,
        nobody=tokens_of_nobody(pipeline),
    )
    return conditions.to(device, pipeline.unet.dtype)


def _place(name: str, step: int) -> Place:
    """down_blocks.1.attentions.0.transformer_blocks.3.attn2.processor -> ("input", 4, 3), where `step` is 3.

    Behind each level of diffusers' layers stands one input block that makes the picture smaller, and before all of them
    the first convolution. A level of output blocks has as many layers as an input level with that block.
    """
    part, *rest = name.split(".")
    numbers = [int(piece) for piece in rest if piece.isdigit()]
    if part == "mid_block":
        return Place("middle", 0, numbers[1])
    level, layer, transformer = numbers
    if part == "down_blocks":
        return Place("input", 1 + step * level + layer, transformer)
    return Place("output", step * level + layer, transformer)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of (B,Q,C) queries over (B,T,C) keys and values."""
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
