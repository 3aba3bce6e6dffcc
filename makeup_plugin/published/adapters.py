"""Published identity adapters (IP-Adapter-FaceID, Face-MakeUp, InstantID) in our classes and diffusers'.

The files' names stay in this package:

    image_proj   projection of the identity: MLP, perceiver or resampler -> IdentityChannel.projection
    ip_adapter   "{i}.to_k_ip", "{i}.to_v_ip" of cross-attentions        -> IdentityChannel.attention
                 "{i}.to_q_lora.down" ... of every attention             -> LoRA in PEFT's names, alpha = rank
    controlnet   ControlNetModel of diffusers, same names                -> ControlNetModel

Index i counts the UNet's attention processors in module order, in SD 1.5: down 0-11, up 12-29, mid 30-31, odd ones
cross. Weights may be of mixed precision, and this module converts them to one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from faceclip.errors import CheckpointError
from faceclip.published.files import check_keys
from faceclip.storage.loading import building
from makeup_plugin.identity import IdentityChannel, cross_attention_layers
from makeup_plugin.published.files import ROOTS, State, read_adapter_file
from makeup_plugin.saving.adapters import insert_lora
from makeup_plugin.saving.lora_files import check_lora

ALL_ATTENTION = r".*\.(attn1|attn2)\.(to_q|to_k|to_v|to_out\.0)"
_DIM_HEAD = 64  # of perceiver and resampler
_SHRINKS = 4  # how often a ControlNet may halve its map
_BLOCKS = (
    (re.compile(r"^(layers\.\d+)\.0\.norm1\."), r"\1.ln0."),
    (re.compile(r"^(layers\.\d+)\.0\.norm2\."), r"\1.ln1."),
    (re.compile(r"^(layers\.\d+)\.0\.to_out\."), r"\1.attn.to_out.0."),
    (re.compile(r"^(layers\.\d+)\.0\.to_"), r"\1.attn.to_"),
    (re.compile(r"^(layers\.\d+)\.1\.0\."), r"\1.ff.0."),
    (re.compile(r"^(layers\.\d+)\.1\.1\."), r"\1.ff.1.net.0.proj."),
    (re.compile(r"^(layers\.\d+)\.1\.3\."), r"\1.ff.1.net.2."),
)
_PROJECTION_NAMES = {
    "perceiver": (
        (re.compile(r"^proj\.0\."), "proj.net.0.proj."),
        (re.compile(r"^proj\.2\."), "proj.net.2."),
        (re.compile(r"^perceiver_resampler\."), ""),
        *_BLOCKS,
    ),
    "mlp": ((re.compile(r"^proj\.0\."), "ff.net.0.proj."), (re.compile(r"^proj\.2\."), "ff.net.2.")),
    "resampler": _BLOCKS,
}
_LORA_KEY = re.compile(r"^(\d+)\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$", re.ASCII)
_IP_KEY = re.compile(r"^(\d+)\.(to_k_ip|to_v_ip)\.weight$", re.ASCII)
_LAYER = re.compile(r"^layers\.(\d+)\.", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PublishedStates:
    """A file's tensors under our names: projection and attention of the identity channel, LoRA, ControlNet.

    form: that of the projection, see `IdentityChannel`. lora and controlnet are empty where the file has none.
    """

    form: str
    projection: dict[str, Tensor]
    attention: dict[str, Tensor]
    lora: dict[str, Tensor]
    controlnet: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PublishedAdapter:
    """A published adapter, ready for its UNet. lora is empty and shading_channel None where the file has none."""

    identity_channel: IdentityChannel
    shading_channel: ControlNetModel | None
    lora: dict[str, Tensor]
    lora_settings: dict[str, Any] | None

    def apply(self, unet: UNet2DConditionModel) -> None:
        """Attach the identity channel to `unet` and add the LoRA with a factor of one."""
        if self.lora_settings is not None:
            insert_lora(unet, self.lora, self.lora_settings, Path("ip_adapter"))
        self.identity_channel.attach(unet)


def load_facemakeup(
    path: str | Path, unet: UNet2DConditionModel, *, dtype: torch.dtype = torch.float32
) -> PublishedAdapter:
    """A published Face-MakeUp checkpoint, v1 or V2, for the SD 1.5 `unet`. Only `apply` changes the UNet.

    Raises CheckpointError, which names the tensors that are missing, unexpected or of another shape.
    """
    return load_adapter_file(path, unet, form="perceiver", roots=ROOTS, nobody="zero_image", dtype=dtype)


def load_adapter_file(
    path: str | Path,
    unet: UNet2DConditionModel,
    *,
    form: str,
    roots: tuple[str, ...] = ROOTS[:2],
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> PublishedAdapter:
    """A published adapter file for `unet`, which this function only reads; `apply` changes it.

    form: of its projection. roots: entries that the file has. settings: further ones of `IdentityChannel` (shortcut,
    normalized, nobody).

    Raises CheckpointError: as `read_adapter_file`, or for tensors that are not those of this form and this UNet; the
    message names them.
    """
    states = convert_state(read_adapter_file(path, roots, unet), unet)
    if states.form != form:
        raise CheckpointError(f"{path}: image_proj is of the form {states.form}, expected {form}: is it another kind?")
    with building, init_empty_weights():
        channel = empty_channel(states, unet, **settings)
        control = _empty_control(states.controlnet, unet) if states.controlnet else None
    _fill(channel.projection, states.projection, dtype, "image_proj")
    _fill(channel.attention, states.attention, dtype, "ip_adapter")
    if control is not None:
        _fill(control, states.controlnet, dtype, "controlnet")
    lora = {key: value.to(dtype) for key, value in states.lora.items()}
    return PublishedAdapter(
        identity_channel=channel.eval(),
        shading_channel=None if control is None else control.eval(),
        lora=lora,
        lora_settings=lora_settings(lora, unet, path),
    )


def lora_settings(lora: Mapping[str, Tensor], unet: UNet2DConditionModel, path: str | Path) -> dict[str, Any] | None:
    """Rank, alpha and targets of a LoRA whose factor is one; None without a LoRA.

    Raises CheckpointError for several ranks, half a pair, or matrices that do not fit the UNet's layers.
    """
    if not lora:
        return None
    layers = sorted({key.rpartition(".lora_")[0] for key in lora})
    ranks = {value.shape[0] for key, value in lora.items() if ".lora_A." in key and value.ndim == 2}
    if len(ranks) != 1 or 0 in ranks:
        raise CheckpointError(f"{path}: the LoRA must be of one rank, found {sorted(ranks)}")
    rank = ranks.pop()
    pattern = re.compile(ALL_ATTENTION)
    whole = layers == sorted(name for name, _ in unet.named_modules() if pattern.fullmatch(name))
    settings = {"rank": rank, "alpha": rank, "target_modules": ALL_ATTENTION if whole else layers}
    check_lora(unet, lora, settings, Path(path))
    return settings


def convert_state(state: State, unet: UNet2DConditionModel) -> PublishedStates:
    """Rename every tensor. `unet` gives the order of the attention layers. Raises CheckpointError for unknown names."""
    attention, lora = _convert_attention(state["ip_adapter"], unet)
    form = _form_of(state["image_proj"])
    return PublishedStates(
        form=form,
        projection=convert_projection(state["image_proj"], form),
        attention=attention,
        lora=lora,
        controlnet=dict(state.get("controlnet", {})),
    )


def convert_projection(state: Mapping[str, Tensor], form: str = "perceiver") -> dict[str, Tensor]:
    """image_proj under the names of diffusers' projections; to_kv is cut into to_k and to_v."""
    result = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _PROJECTION_NAMES[form]:
            name = pattern.sub(replacement, name)
        if ".to_kv." in name:
            if value.ndim != 2 or len(value) % 2:
                raise CheckpointError(f"image_proj.{key} is {tuple(value.shape)}, no keys and values side by side")
            result[name.replace(".to_kv.", ".to_k.")], result[name.replace(".to_kv.", ".to_v.")] = value.chunk(2)
        else:
            result[name] = value
    return result


def _form_of(state: Mapping[str, Tensor]) -> str:
    if any(key.startswith("perceiver_resampler.") for key in state):
        return "perceiver"
    return "resampler" if "latents" in state else "mlp"


def _convert_attention(
    state: Mapping[str, Tensor], unet: UNet2DConditionModel
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    names = list(unet.attn_processors)
    cross = list(cross_attention_layers(unet))
    attention, lora = {}, {}
    for key, value in state.items():
        match = _IP_KEY.match(key) or _LORA_KEY.match(key)
        if match is None or len(match[1]) > 5 or int(match[1]) >= len(names):
            raise CheckpointError(f"ip_adapter.{key} belongs to no attention layer of this UNet ({len(names)} layers)")
        layer = names[int(match[1])]
        if match.re is _LORA_KEY:
            projection = "to_out.0" if match[2] == "to_out" else match[2]
            side = "lora_A" if match[3] == "down" else "lora_B"
            lora[f"{layer.removesuffix('.processor')}.{projection}.{side}.weight"] = value
        elif layer in cross:
            attention[f"{cross.index(layer)}.{match[2]}.0.weight"] = value
        else:
            raise CheckpointError(f"ip_adapter.{key} holds identity keys for {layer}, which is self-attention")
    return attention, lora


def empty_channel(states: PublishedStates, unet: UNet2DConditionModel, **settings: Any) -> IdentityChannel:
    """A channel whose sizes follow from the tensors. Raises CheckpointError for tensors that give no sizes."""
    tensors, layers = states.projection, cross_attention_layers(unet)
    sizes: dict[str, Any] = {"form": states.form}
    if states.form == "resampler":
        latents = _shape(tensors, "latents", 3)
        sizes |= {"num_tokens": latents[1], "hidden_dim": latents[2]}
        sizes["identity_dim"] = _shape(tensors, "proj_in.weight", 2)[1]
    else:
        first, last = ("ff.net.0.proj.weight", "ff.net.2.weight")
        if states.form == "perceiver":
            first, last = first.replace("ff.", "proj.", 1), last.replace("ff.", "proj.", 1)
            sizes["image_dim"] = _shape(tensors, "proj_in.weight", 2)[1]
        width = _shape(tensors, "norm.weight", 1)[0]
        sizes |= {"identity_dim": _shape(tensors, first, 2)[1], "num_tokens": _shape(tensors, last, 2)[0] // width}
    if states.form != "mlp":
        sizes["depth"] = _depth(tensors)
        sizes["heads"] = _shape(tensors, "layers.0.attn.to_q.weight", 2)[0] // _DIM_HEAD
    if not all(sizes.get(name, 1) for name in ("num_tokens", "heads")):
        raise CheckpointError(f"image_proj has no size that a channel may have: {sizes}")
    return IdentityChannel(
        layer_names=list(layers),
        layer_widths=list(layers.values()),
        cross_attention_dim=unet.config.cross_attention_dim,
        dim_head=_DIM_HEAD,
        **sizes,
        **settings,
    )


def _empty_control(tensors: Mapping[str, Tensor], unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet whose map is shrunk as often as the tensors say: three times for the VAEs of SD 1.5 and SDXL."""
    embedding = "controlnet_cond_embedding"
    names = [f"{embedding}.conv_in.bias", *(f"{embedding}.blocks.{2 * step + 1}.bias" for step in range(_SHRINKS))]
    widths = tuple(len(tensors[name]) for name in names if name in tensors and tensors[name].ndim == 1)
    settings = {"conditioning_embedding_out_channels": widths} if widths else {}
    return ControlNetModel.from_unet(unet, load_weights_from_unet=False, **settings)


def _shape(tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"image_proj lacks a tensor that gives its size: {name} (our name for it)")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise CheckpointError(f"image_proj: {name} (our name) is {shape}, expected {dimensions} dimensions, none empty")
    return shape


def _depth(tensors: Mapping[str, Tensor]) -> int:
    """Number of layers. They must be counted without a gap: a file's highest number may be any."""
    numbers = {match[1] for match in map(_LAYER.match, tensors) if match}
    wanted = {str(number) for number in range(len(numbers))}
    if not numbers or numbers != wanted:
        strange = min(numbers - wanted, default="0", key=lambda number: (len(number), number))
        raise CheckpointError(f"image_proj: layers are not counted from 0 without a gap, one is layers.{strange[:20]}")
    return len(numbers)


def _fill(module: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype, root: str) -> None:
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    check_keys(state, wanted, root, "part of a published adapter for this UNet")
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True, assign=True)
