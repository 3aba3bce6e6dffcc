"""Adapters that hold all of the UNet, as FaceCLIP-SDXL is trained, in place of a LoRA.

DIR/unet/                   config.json, diffusion_pytorch_model.safetensors: the UNet after training
DIR/adapter.json            "unet": "full"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from diffusers import UNet2DConditionModel
from safetensors import SafetensorError

from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.loading import load_strictly
from makeup_plugin.turns import Turns, give_turns

UNET_FOLDER = "unet"
FULL = "full"


class WholeUNetPipeline(Protocol):
    """The part of a pipeline that these adapters change: the UNet. It keeps the base's UNet to return to."""

    unet: UNet2DConditionModel
    whole_unet: bool
    replaced_unet: UNet2DConditionModel | None
    _turns: Turns

    def register_modules(self, **modules: Any) -> None: ...


def holds_unet(config: dict[str, Any]) -> bool:
    """Whether an adapter.json is that of an adapter with all of the UNet."""
    return config.get("unet") == FULL


def check_unet_field(config: dict[str, Any], where: str) -> None:
    """Raises CheckpointError, which begins with `where`, for an adapter.json with any other entry for the UNet."""
    if config.get("unet", FULL) != FULL or (holds_unet(config) and config["lora"]):
        raise CheckpointError(
            f"{where}: unet is {config['unet']!r}, beside lora {config['lora']!r}: expected {FULL!r} without a LoRA;"
            " save or fetch the adapter again"
        )


def read_unet(pipeline: WholeUNetPipeline, directory: Path, *, variant: str | None) -> UNet2DConditionModel:
    """The UNet of an adapter, in the dtype and on the device of the pipeline's.

    Raises ConfigError while the pipeline's UNet carries LoRAs, which would be lost, and CheckpointError, naming the
    folder, for missing or damaged files.
    """
    _check_without_lora(pipeline.unet, f"{directory} holds a UNet in place of the pipeline's")
    kind, folder = UNet2DConditionModel, directory / UNET_FOLDER
    try:
        unet = load_strictly(kind.from_pretrained, kind, folder, torch_dtype=pipeline.unet.dtype, variant=variant)
    except (CheckpointError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read ({error}); save or fetch the adapter again") from error
    return unet.to(pipeline.unet.device)


def exchange_unet(pipeline: WholeUNetPipeline, unet: UNet2DConditionModel) -> None:
    """Puts an adapter's UNet in place of the base's, which the pipeline keeps for `restore_unet`.

    Pipelines that use either UNet still take turns, because they may share a scheduler and the channels.
    """
    base = pipeline.unet
    give_turns(unet, pipeline._turns)
    pipeline.register_modules(unet=unet)
    pipeline.replaced_unet, pipeline.whole_unet = base, True


def restore_unet(pipeline: WholeUNetPipeline) -> None:
    """Puts the base's UNet back.

    Raises ConfigError where there is none, because the pipeline was saved or trained with its UNet, and while the
    adapter's UNet carries LoRAs, which would be lost.
    """
    base = pipeline.replaced_unet
    if base is None:
        raise ConfigError(
            "this pipeline's UNet was trained as a whole and the base's is not here: load the base by from_base"
        )
    _check_without_lora(pipeline.unet, "the base's UNet would take the place of the adapter's")
    pipeline.register_modules(unet=base.to(device=pipeline.unet.device, dtype=pipeline.unet.dtype))
    pipeline.replaced_unet, pipeline.whole_unet = None, False


def _check_without_lora(unet: UNet2DConditionModel, what: str) -> None:
    if names := sorted(getattr(unet, "peft_config", {})):
        raise ConfigError(
            f"{what}, which carries the LoRA {', '.join(map(repr, names))}: call unload_lora_weights() first and"
            " load the LoRA again afterwards"
        )
