"""Adapters: what training adds to a base model (LoRA, identity channel, shading channel), in one directory.

DIR/adapter.json            what it is, which base it fits, licence
DIR/lora.safetensors        LoRA matrices, PEFT names
DIR/unet/                   in place of LoRA: all of the UNet (`makeup_plugin.saving.whole_unet`)
DIR/identity_channel/       config.json, diffusion_pytorch_model.safetensors
DIR/shading_channel/        the same
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import ControlNetModel, ModelMixin, UNet2DConditionModel
from diffusers.utils.torch_utils import unwrap_module
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.files import write_json
from faceclip.storage.loading import DAMAGE, building, load_strictly
from faceclip.storage.regular import read_settings
from faceclip.storage.staging import staged
from makeup_plugin.arguments import check_adapter_name
from makeup_plugin.controls import check_shading_channel
from makeup_plugin.identity import IdentityChannel, detach_identity
from makeup_plugin.marking.provenance import public_name
from makeup_plugin.saving.fingerprint import check_fingerprint, fingerprint
from makeup_plugin.saving.lora_files import check_lora, check_lora_settings, read_lora_file, written_targets
from makeup_plugin.saving.whole_unet import (
    FULL,
    UNET_FOLDER,
    WholeUNetPipeline,
    check_unet_field,
    exchange_unet,
    holds_unet,
    read_unet,
    restore_unet,
)

ADAPTER_NAME = "makeup"
CONFIG_FILE = "adapter.json"
LORA_FILE = "lora.safetensors"
FORMAT = 1
FORMAT_WHOLE_UNET = 2  # versions of this package that know LoRA alone refuse it
UNKNOWN_LICENCE = "unknown"
# Fields that adapter.json must have. Others only describe the adapter.
_FIELDS = {"base_fingerprint": dict, "lora": dict | None, "identity_channel": bool, "shading_channel": bool}
_LORA_FIELDS = {"rank": int, "alpha": int | float, "target_modules": str | list}


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adaptation of the UNet's attention (Hu et al. 2021). `alpha=None` means alpha = rank, a factor of one.

    Raises ConfigError for a rank below 1 and for empty targets or attentions.
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    attentions: tuple[str, ...] = ("attn1", "attn2")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank must be at least 1, got {self.rank}")
        if not self.targets or not self.attentions:
            raise ConfigError("lora.targets and lora.attentions must not be empty")

    def build(self) -> LoraConfig:
        """PEFT's configuration. The matrices B start at zero, so that a new adapter changes nothing."""
        alternatives = "|".join(name.replace(".", r"\.") for name in self.targets)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,  # type: ignore[arg-type]  # any number
            target_modules=rf".*\.({'|'.join(self.attentions)})\.({alternatives})",
            init_lora_weights=True,
        )


class AdaptedPipeline(WholeUNetPipeline, Protocol):
    """What an adapter needs from a pipeline. FaceMakeUpPipeline has it."""

    adapter_licence: str
    image_encoder: torch.nn.Module | None
    identity_channel: IdentityChannel | None
    shading_channel: ControlNetModel | None


def add_lora(
    unet: UNet2DConditionModel, settings: LoraSettings, *, name: str = ADAPTER_NAME
) -> list[torch.nn.Parameter]:
    """Add a new LoRA to the UNet and return its parameters; all other parameters are frozen.

    Raises ConfigError where the UNet already has an adapter of this name.
    """
    check_adapter_name(name)
    if name in getattr(unet, "peft_config", {}):
        raise ConfigError(f"the UNet already has an adapter {name!r}: call remove_lora first")
    with building:
        unet.add_adapter(settings.build(), adapter_name=name)
    return lora_parameters(unet, name=name)


def lora_parameters(unet: UNet2DConditionModel, *, name: str = ADAPTER_NAME) -> list[torch.nn.Parameter]:
    """The adapter's matrices."""
    return [value for key, value in unet.named_parameters() if ".lora_" in key and f".{name}." in key]


def remove_lora(unet: UNet2DConditionModel, *, name: str = ADAPTER_NAME) -> None:
    """Remove the LoRA. The base layers never change, so the base model's output returns exactly.

    Raises ConfigError when there is no such LoRA, and while any LoRA is fused.
    """
    if name not in getattr(unet, "peft_config", {}):
        raise ConfigError(f"the UNet has no adapter {name!r}")
    check_unfused(unet)
    unet.delete_adapters(name)
    if not getattr(unet, "peft_config", {}):
        unet.unload_lora()


def check_unfused(unet: UNet2DConditionModel) -> None:
    """Raises ConfigError while a LoRA is fused, because the UNet then does not hold the base's weights."""
    names = {name for module in unet.modules() for name in getattr(module, "merged_adapters", ())}
    if names:
        raise ConfigError(
            f"the LoRA {', '.join(map(repr, sorted(names)))} is fused into the UNet: call unfuse_lora() before adapters"
            " are saved, loaded or removed"
        )


def check_there(modules: Mapping[str, Any]) -> None:
    """Raises ConfigError for modules whose weights are offloaded layer by layer."""
    for name, module in modules.items():
        if isinstance(module, torch.nn.Module) and any(value.is_meta for value in module.state_dict().values()):
            raise ConfigError(f"{name} is offloaded, layer by layer: call remove_all_hooks() before saving")


def base_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet without adapter and channel, as it may be saved as the base model. It shares its weights.

    Raises ConfigError while a LoRA is fused.
    """
    check_unfused(unet)
    unet = unwrap_module(unet)  # of torch.compile
    state = {key.replace(".base_layer.", "."): value for key, value in unet.state_dict().items() if ".lora_" not in key}
    # Not accelerate's `init_empty_weights`, which replaces methods of all modules, in all threads. While another thread
    # loads with it, assigned weights would become empty: `building` keeps the two apart.
    with building:
        with torch.device("meta"):
            clean = UNet2DConditionModel.from_config(unet.config)
        clean.load_state_dict(state, strict=True, assign=True)
    return clean


def save_adapter(
    directory: str | Path,
    *,
    unet: UNet2DConditionModel,
    identity_channel: IdentityChannel | None = None,
    shading_channel: ControlNetModel | None = None,
    licence: str = "",
    base_model: str = "",
    whole_unet: bool = False,
) -> Path:
    """Write everything that was added to the base, and return the directory.

    The directory is created. The files of an earlier adapter are replaced once all new files are written, and other
    files stay. licence: the text for adapter.json, "" for unknown. whole_unet: store all of the UNet.

    Raises:
        ConfigError: a LoRA is fused or layers are offloaded. Nothing is written.
        CheckpointError: the disk is full or not writable. An earlier adapter stays as it was.
    """
    check_unfused(unet)
    directory = Path(directory)
    channels = {"identity_channel": identity_channel, "shading_channel": shading_channel}
    check_there({"unet": unet, **channels})
    with staged(directory, last=CONFIG_FILE, optional=LORA_FILE) as folder:
        for name, channel in channels.items():
            if channel is not None:
                channel.save_pretrained(folder / name)
                hide_local_path(folder / name / "config.json")
        if whole_unet:
            base_unet(unet).save_pretrained(folder / UNET_FOLDER)
            hide_local_path(folder / UNET_FOLDER / "config.json")
        write_lora(folder, unet, channels, licence=licence, base_model=base_model, whole_unet=whole_unet)
    return directory


def write_lora(
    directory: Path,
    unet: UNet2DConditionModel,
    channels: Mapping[str, ModelMixin | None],
    *,
    licence: str,
    base_model: str,
    whole_unet: bool = False,
) -> None:
    """Write LoRA and adapter.json into the folder that already holds the channels; see `save_adapter`."""
    unet = unwrap_module(unet)
    lora = getattr(unet, "peft_config", {}).get(ADAPTER_NAME)
    if lora is not None:
        weights = get_peft_model_state_dict(unet, adapter_name=ADAPTER_NAME)
        save_file({key: value.contiguous() for key, value in weights.items()}, directory / LORA_FILE)
    config = {
        "format": FORMAT_WHOLE_UNET if whole_unet else FORMAT,
        "base_model": public_name(base_model),
        "base_fingerprint": fingerprint(unet),
        "lora": None
        if lora is None
        else {"rank": lora.r, "alpha": lora.lora_alpha, "target_modules": written_targets(lora.target_modules)},
        **{name: channel is not None for name, channel in channels.items()},
        "licence": licence or UNKNOWN_LICENCE,
    }
    if whole_unet:
        config["unet"] = FULL
    write_json(directory / CONFIG_FILE, config, indent=2, kind=CheckpointError)


def hide_local_path(path: Path) -> None:
    """Shorten the path that diffusers writes into a configuration file to its last part (see `public_name`)."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("_name_or_path"):
        public = config | {"_name_or_path": public_name(config["_name_or_path"])}
        write_json(path, public, indent=2, kind=CheckpointError)


def read_adapter_config(directory: str | Path) -> dict[str, Any]:
    """adapter.json of a directory. Raises CheckpointError when it is missing, damaged or of an unknown format."""
    path = Path(directory) / CONFIG_FILE
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: this is not an adapter directory, or saving it was interrupted; save it again"
        )
    config = read_settings(path)
    if config.get("format") not in (FORMAT, FORMAT_WHOLE_UNET):
        raise CheckpointError(
            f"{path}: format {config.get('format')!r} is not {FORMAT} or {FORMAT_WHOLE_UNET};"
            " use a version of this package that writes it"
        )
    _check_fields(config, _FIELDS, str(path))
    check_unet_field(config, str(path))
    if config["lora"] is not None:
        _check_fields(config["lora"], _LORA_FIELDS, f"{path}: lora")
        check_lora_settings(config["lora"], f"{path}: lora")
    return config


def _check_fields(values: dict[str, Any], kinds: dict[str, Any], where: str) -> None:
    for name, kind in kinds.items():
        if name not in values or not isinstance(values[name], kind):
            found = repr(values[name]) if name in values else "missing"
            raise CheckpointError(f"{where}: {name} is {found}; save or fetch the adapter again")


def load_adapter(pipeline: AdaptedPipeline, directory: str | Path, *, variant: str | None = None) -> dict[str, Any]:
    """Add a saved adapter to a pipeline whose UNet has the base's form, and return the adapter's configuration.

    The adapter takes the UNet's dtype and device, and active LoRAs stay active. `variant` is the variant with which the
    channels' files were saved, if any. Everything is read and compared before the pipeline changes.

    Raises:
        CheckpointError: a file or field is missing, damaged or does not fit this UNet, or the pipeline already has an
            adapter. The message names file and field.
        ConfigError: the adapter has an identity channel and the pipeline no image encoder to feed it; a LoRA is fused
            (PEFT would leave the new one out); or hooks move the UNet.
    """
    check_unfused(pipeline.unet)
    if any(hasattr(module, hook) for module in pipeline.unet.modules() for hook in ("_hf_hook", "_diffusers_hook")):
        raise ConfigError(
            f"the UNet has hooks (offloading, a device map, casting), which would not move the weights of {directory}:"
            " load the adapter first, then enable the hooks (remove_all_hooks() removes those of offloading)"
        )
    directory = Path(directory)
    config = read_adapter_config(directory)
    check_fingerprint(config["base_fingerprint"], pipeline.unet, directory / CONFIG_FILE)
    if ADAPTER_NAME in getattr(pipeline.unet, "peft_config", {}):
        raise CheckpointError(f"the pipeline already has an adapter: call unload_adapter before loading {directory}")
    dtype, device = pipeline.unet.dtype, pipeline.unet.device
    lora = read_lora_file(directory / LORA_FILE) if config["lora"] else None
    unet = read_unet(pipeline, directory, variant=variant) if holds_unet(config) else None
    loaded = {
        name: _load_channel(kind, directory / name, dtype, variant).to(device)
        for name, kind in (("identity_channel", IdentityChannel), ("shading_channel", ControlNetModel))
        if config[name]
    }
    if "identity_channel" in loaded:
        _check_inputs(pipeline, loaded["identity_channel"], directory)
        loaded["identity_channel"].check_layers(pipeline.unet)
    if "shading_channel" in loaded:
        try:
            check_shading_channel(loaded["shading_channel"], pipeline.unet)
        except ConfigError as error:
            raise CheckpointError(f"{directory}: {error}") from error
    if lora is not None:
        with keep_active(pipeline.unet):
            insert_lora(pipeline.unet, lora, config["lora"], directory / LORA_FILE)
    # Nothing below can fail: layers were compared above.
    if unet is not None:
        exchange_unet(pipeline, unet)
    if "identity_channel" in loaded:
        loaded["identity_channel"].attach(pipeline.unet)
    pipeline.register_modules(**loaded)
    pipeline.adapter_licence = licence_of(config)
    return config


def _check_inputs(pipeline: AdaptedPipeline, channel: IdentityChannel, directory: Path) -> None:
    if channel.reads_image and pipeline.image_encoder is None:
        raise ConfigError(
            f"{directory} has an identity channel, which needs image_encoder: give the pipeline the image tower that"
            " the channel was trained with, e.g. from_base(..., image_encoder=tower)"
        )


def licence_of(config: dict[str, Any]) -> str:
    """The licence that an adapter.json names, or "" where it names none."""
    licence = str(config.get("licence") or "")
    return "" if licence == UNKNOWN_LICENCE else licence


@contextmanager
def keep_active(unet: UNet2DConditionModel) -> Iterator[None]:
    """Context that keeps the active LoRAs active, with their scales, beside one that is added inside it.

    PEFT would activate only the last one.
    """
    before = unet.active_adapters() if getattr(unet, "peft_config", {}) else []
    present = set(getattr(unet, "peft_config", {}))
    yield
    added = [name for name in getattr(unet, "peft_config", {}) if name not in present]
    if before and added:
        trained = {name: value.requires_grad for name, value in unet.named_parameters()}
        unet.set_adapter([*before, *added])
        for name, value in unet.named_parameters():
            value.requires_grad_(trained[name])  # PEFT makes all active LoRAs trainable


def _load_channel(kind: type[ModelMixin], directory: Path, dtype: torch.dtype, variant: str | None) -> ModelMixin:
    try:
        return load_strictly(kind.from_pretrained, kind, directory, torch_dtype=dtype, variant=variant)
    except (CheckpointError, SafetensorError) as error:
        raise CheckpointError(f"{directory} cannot be read ({error}); save or fetch the adapter again") from error


def unload_adapter(pipeline: AdaptedPipeline) -> None:
    """Return to the base model: remove our LoRA and the channels, or put back the UNet that was replaced."""
    if pipeline.whole_unet:
        restore_unet(pipeline)
    if ADAPTER_NAME in getattr(pipeline.unet, "peft_config", {}):
        remove_lora(pipeline.unet)
    detach_identity(pipeline.unet)
    pipeline.register_modules(identity_channel=None, shading_channel=None)
    pipeline.adapter_licence = ""


def insert_lora(unet: UNet2DConditionModel, weights: dict[str, Tensor], config: dict[str, Any], path: Path) -> None:
    """Add a LoRA and fill it. Raises CheckpointError, with the UNet as it was, unless every key and shape fits."""
    unet = unwrap_module(unet)
    check_lora(unet, weights, config, path)
    before = unet._hf_peft_config_loaded  # diffusers sets it before PEFT has looked at anything
    settings = LoraConfig(r=config["rank"], lora_alpha=config["alpha"], target_modules=config["target_modules"])
    try:
        with building:
            unet.add_adapter(settings, adapter_name=ADAPTER_NAME)
        set_peft_model_state_dict(unet, weights, adapter_name=ADAPTER_NAME)
    except DAMAGE as error:
        if ADAPTER_NAME in getattr(unet, "peft_config", {}):
            remove_lora(unet)
        unet._hf_peft_config_loaded = before
        raise CheckpointError(
            f"{path} cannot be put on this UNet ({error}); save or fetch the adapter again"
        ) from error
    device, dtype = unet.device, unet.dtype  # each of them looks through the whole UNet
    for parameter in lora_parameters(unet):
        parameter.data = parameter.data.to(device=device, dtype=dtype)
        parameter.requires_grad_(False)
