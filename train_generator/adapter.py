"""Adds what stage 2 trains to a base: new channels with LoRA or the whole UNet, or those of an earlier training."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

from faceclip.errors import ConfigError
from faceclip.storage.hashes import joined_hash
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.saving.adapters import LoraSettings, add_lora, load_adapter, lora_parameters
from makeup_plugin.shading import shading_channel_from_unet
from train_generator.config import AdapterConfig
from train_generator.loading import check_licence


def add_adapter(pipeline: FaceMakeUpPipeline, config: AdapterConfig) -> None:
    """Adds new channels to a base pipeline, and LoRA unless the whole UNet is trained; freezes everything else.

    The shading channel copies the UNet before LoRA is inserted.
    """
    _freeze(pipeline)
    if config.identity.enabled:
        identity = IdentityChannel.from_unet(
            pipeline.unet,
            identity_dim=pipeline.joint_encoder.face_encoder.config.embedding_dim,
            image_dim=pipeline.image_encoder.config.width,
            num_tokens=config.identity.num_tokens,
            depth=config.identity.depth,
            heads=config.identity.heads,
            dim_head=config.identity.dim_head,
        )
        shading = None
        if config.shading:
            unet, factor = pipeline.unet, pipeline.vae_scale_factor
            frozen = config.unet == "lora" and config.shading_layers == "new"
            share = frozen or unet.dtype != torch.float32  # until it is trained, or permanently
            shading = shading_channel_from_unet(unet, vae_scale_factor=factor, share=share)
            train_shading(shading, pipeline.unet, config)
        identity.attach(pipeline.unet)
        pipeline.register_modules(identity_channel=identity, shading_channel=shading)
        identity.requires_grad_(True)
    if config.unet == "full":
        pipeline.unet.requires_grad_(True)
        pipeline.whole_unet = True
    else:
        for parameter in add_lora(pipeline.unet, LoraSettings(rank=config.lora_rank)):
            parameter.data = parameter.data.float()


def continue_adapter(pipeline: FaceMakeUpPipeline, config: AdapterConfig, directory: Path, *, licence: str) -> str:
    """Loads a saved adapter (an export of stage 2, or a folder of `save_adapter`) into a base pipeline to train it
    further, freezes everything else, and returns a hash of the adapter's weights.

    licence: that of the result. Raises CheckpointError if the directory is no adapter, is damaged, or belongs to a base
    of another form. Raises ConfigError, which names the fields, if the adapter has other sizes than `config`, or if
    `licence` does not include its licence.
    """
    _freeze(pipeline)
    saved = load_adapter(pipeline, directory)
    found: dict[str, Any] = {
        "unet": saved.get("unet", "lora"),
        "identity.enabled": saved["identity_channel"],
        "shading": saved["shading_channel"],
    }
    wanted: dict[str, Any] = {
        "unet": config.unet,
        "identity.enabled": config.identity.enabled,
        "shading": config.shading,
    }
    if config.unet == "lora":
        found["lora_rank"], wanted["lora_rank"] = saved["lora"] and saved["lora"]["rank"], config.lora_rank
    if found["identity.enabled"] and config.identity.enabled:
        for name in ("num_tokens", "depth", "heads", "dim_head"):
            found[f"identity.{name}"] = pipeline.identity_channel.config[name]
            wanted[f"identity.{name}"] = getattr(config.identity, name)
    if different := [name for name, value in wanted.items() if found[name] != value]:
        fields = ", ".join(f"adapter.{name}={found[name]} (configured: {wanted[name]})" for name in different)
        raise ConfigError(f"init={directory}: the adapter there has {fields}: set these fields as it has them")
    check_licence(f"init={directory}", pipeline.adapter_licence, licence)
    if pipeline.identity_channel is not None:
        pipeline.identity_channel.float().requires_grad_(True)
    if pipeline.shading_channel is not None:
        train_shading(pipeline.shading_channel, pipeline.unet, config)
    for parameter in pipeline.unet.parameters() if config.unet == "full" else lora_parameters(pipeline.unet):
        parameter.requires_grad_(True)
        parameter.data = parameter.data.float()
    return joined_hash(
        name.encode() + parameter.detach().float().cpu().numpy().tobytes()
        for component in (pipeline.unet, pipeline.identity_channel, pipeline.shading_channel)
        if component is not None
        for name, parameter in component.named_parameters()
        if parameter.requires_grad
    )


def train_shading(channel: ControlNetModel, unet: UNet2DConditionModel, config: AdapterConfig) -> None:
    """Makes the shading channel trainable in float32; trained weights are no longer shared with the UNet.

    With `shading_layers="new"` only its own layers are trained: the map's embedding and the zero convolutions.
    """
    new = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
    shared = {id(parameter) for parameter in unet.parameters()}
    for path, module in channel.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            trained = config.shading_layers == "all" or path.startswith(new)
            if trained and (id(parameter) in shared or parameter.dtype != torch.float32):
                parameter = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
                module.register_parameter(key, parameter)
            parameter.requires_grad_(trained)


def _freeze(pipeline: FaceMakeUpPipeline) -> None:
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False)
