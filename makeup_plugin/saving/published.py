"""Published Face-MakeUp checkpoints (Stable Diffusion 1.5) in diffusers' classes.

The file is one dict {"image_proj", "ip_adapter", "controlnet"}, which v1 and V2 share. A V2 archive may hold
accelerate's raw layout instead, which is rejected. The file's names stay in this module:

    image_proj   FaceID-Plus projection with its perceiver          -> IdentityChannel.projection
    ip_adapter   "{i}.to_k_ip", "{i}.to_v_ip" of cross-attentions   -> IdentityChannel.attention
                 "{i}.to_q_lora.down" ... of every attention        -> LoRA in PEFT's names, alpha = rank
    controlnet   ControlNetModel of diffusers, same names           -> ControlNetModel

Index i counts the UNet's attention processors in module order: down 0-11, up 12-29, mid 30-31, odd ones
cross. Weights are mixed bf16 and fp32, and this module converts them to one dtype. In the published model identity
tokens are the ControlNet's only context, and CLIP ViT-H encodes images of the person (second last hidden states,
257x1280).
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from faceclip.errors import CheckpointError
from faceclip.published.files import check_keys
from makeup_plugin.identity import IdentityChannel, cross_attention_layers
from makeup_plugin.saving.adapters import insert_lora

ROOTS = ("image_proj", "ip_adapter", "controlnet")
_PERCEIVER_DIM_HEAD = 64
_PROJECTION_NAMES = (
    (re.compile(r"^proj\.0\."), "proj.net.0.proj."),
    (re.compile(r"^proj\.2\."), "proj.net.2."),
    (re.compile(r"^perceiver_resampler\."), ""),
    (re.compile(r"^(layers\.\d+)\.0\.norm1\."), r"\1.ln0."),
    (re.compile(r"^(layers\.\d+)\.0\.norm2\."), r"\1.ln1."),
    (re.compile(r"^(layers\.\d+)\.0\.to_out\."), r"\1.attn.to_out.0."),
    (re.compile(r"^(layers\.\d+)\.0\.to_"), r"\1.attn.to_"),
    (re.compile(r"^(layers\.\d+)\.1\.0\."), r"\1.ff.0."),
    (re.compile(r"^(layers\.\d+)\.1\.1\."), r"\1.ff.1.net.0.proj."),
    (re.compile(r"^(layers\.\d+)\.1\.3\."), r"\1.ff.1.net.2."),
)
_LORA_KEY = re.compile(r"^(\d+)\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")
_IP_KEY = re.compile(r"^(\d+)\.(to_k_ip|to_v_ip)\.weight$")


@dataclass(frozen=True, kw_only=True)
class PublishedStates:
    """The checkpoint's tensors under our names: projection and attention of the identity channel, LoRA, ControlNet."""

    projection: dict[str, Tensor]
    attention: dict[str, Tensor]
    lora: dict[str, Tensor]
    controlnet: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class PublishedFaceMakeUp:
    """A published checkpoint, ready for its UNet."""

    identity_channel: IdentityChannel
    shading_channel: ControlNetModel
    lora: dict[str, Tensor]
    lora_rank: int

    def apply(self, unet: UNet2DConditionModel) -> None:
        """Attach the identity channel to `unet` and add the LoRA with a factor of one."""
        insert_lora(
            unet,
            self.lora,
            {
                "rank": self.lora_rank,
                "alpha": self.lora_rank,
                "target_modules": r".*\.(attn1|attn2)\.(to_q|to_k|to_v|to_out\.0)",
            },
            Path("ip_adapter"),
        )
        self.identity_channel.attach(unet)


def read_checkpoint(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """The three dicts of a checkpoint file, read without running code from it.

    Raises CheckpointError for a missing or damaged file and for other entries than these three.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory: give the Face-MakeUp checkpoint file in it")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give the Face-MakeUp checkpoint file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is damaged or holds more than tensors: {error}") from error
    if not isinstance(state, dict) or set(state) != set(ROOTS):
        found = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(
            f"{path}: expected the entries {', '.join(ROOTS)}, found {found}; give a file in the published layout"
            " (accelerate's raw layout is not read)"
        )
    for root, tensors in state.items():
        if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise CheckpointError(f"{path}: {root} is not a dictionary of tensors: download the file again")
    return state


def convert_state(state: dict[str, dict[str, Tensor]], unet: UNet2DConditionModel) -> PublishedStates:
    """Rename every tensor. `unet` gives the order of the attention layers. Raises CheckpointError for unknown names."""
    attention, lora = _convert_attention(state["ip_adapter"], unet)
    return PublishedStates(
        projection=convert_projection(state["image_proj"]),
        attention=attention,
        lora=lora,
        controlnet=dict(state["controlnet"]),
    )


def convert_projection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """image_proj under the names of diffusers' IPAdapterFaceIDPlusImageProjection; to_kv is cut into to_k and to_v."""
    result = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _PROJECTION_NAMES:
            name = pattern.sub(replacement, name)
        if ".to_kv." in name:
            result[name.replace(".to_kv.", ".to_k.")], result[name.replace(".to_kv.", ".to_v.")] = value.chunk(2)
        else:
            result[name] = value
    return result


def load_facemakeup(
    path: str | Path, unet: UNet2DConditionModel, *, dtype: torch.dtype = torch.float32
) -> PublishedFaceMakeUp:
    """A published checkpoint for the SD1.5 `unet`. This function only reads the UNet; `apply` changes it.

    Raises CheckpointError, which names the tensors that are missing, unexpected or of another shape.
    """
    state = read_checkpoint(path)
    states = convert_state(state, unet)
    with init_empty_weights():
        channel = empty_channel(states, unet)
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    _fill(channel.projection, states.projection, dtype, "image_proj")
    _fill(channel.attention, states.attention, dtype, "ip_adapter")
    _fill(control, states.controlnet, dtype, "controlnet")
    lora = {key: value.to(dtype) for key, value in states.lora.items()}
    ranks = {value.shape[0] for key, value in lora.items() if ".lora_A." in key}
    if len(ranks) != 1:
        raise CheckpointError(f"{path}: ip_adapter must have LoRA of one rank, found {sorted(ranks)}")
    return PublishedFaceMakeUp(
        identity_channel=channel.eval(), shading_channel=control.eval(), lora=lora, lora_rank=ranks.pop()
    )


def _convert_attention(
    state: dict[str, Tensor], unet: UNet2DConditionModel
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    names = list(unet.attn_processors)
    cross = list(cross_attention_layers(unet))
    attention, lora = {}, {}
    for key, value in state.items():
        match = _IP_KEY.match(key) or _LORA_KEY.match(key)
        if match is None or int(match[1]) >= len(names):
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


def empty_channel(states: PublishedStates, unet: UNet2DConditionModel) -> IdentityChannel:
    """A channel whose sizes follow from the tensors."""
    projection = states.projection
    try:
        width = projection["norm.weight"].shape[0]
        layers = cross_attention_layers(unet)
        return IdentityChannel(
            layer_names=list(layers),
            layer_widths=list(layers.values()),
            cross_attention_dim=unet.config.cross_attention_dim,
            identity_dim=projection["proj.net.0.proj.weight"].shape[1],
            image_dim=projection["proj_in.weight"].shape[1],
            num_tokens=projection["proj.net.2.weight"].shape[0] // width,
            depth=1 + max(int(key.split(".")[1]) for key in projection if key.startswith("layers.")),
            heads=projection["layers.0.attn.to_q.weight"].shape[0] // _PERCEIVER_DIM_HEAD,
            dim_head=_PERCEIVER_DIM_HEAD,
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"image_proj lacks a tensor that gives its size: {error}") from error


def _fill(module: nn.Module, state: dict[str, Tensor], dtype: torch.dtype, root: str) -> None:
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    check_keys(state, wanted, root, "part of a Face-MakeUp checkpoint for this UNet")
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, strict=True, assign=True)
