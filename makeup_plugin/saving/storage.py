"""Saving and loading the whole pipeline: the base model as it was, and next to it what training added.

The directory has diffusers' layout (model_index.json, one folder per component) and at the same time that of
an adapter (`makeup_plugin.saving.adapters`): `load_adapter` accepts it too. adapter.json is written last and marks a
complete save.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from diffusers.utils import logging
from huggingface_hub import create_repo, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor

from faceclip.errors import CheckpointError, ConfigError
from faceclip.published.files import is_hub_id
from faceclip.storage.staging import staged
from makeup_plugin.saving.adapters import (
    ADAPTER_NAME,
    CONFIG_FILE,
    LORA_FILE,
    UNKNOWN_LICENCE,
    base_unet,
    check_fingerprint,
    check_there,
    check_unfused,
    hide_local_path,
    insert_lora,
    keep_active,
    licence_of,
    load_adapter,
    load_lora_file,
    read_adapter_config,
    remove_lora,
    save_adapter,
    unload_adapter,
    write_lora,
)

logger = logging.get_logger(__name__)
COMPONENT_MODULES = (
    "faceclip.encoder",
    "faceclip.towers.image",
    "faceclip.image_tower",  # of pipelines saved before version 0.2
    "faceclip.face3d.fitter",
    "makeup_plugin.identity",
)


class PipelineStorageMixin:
    """`from_pretrained`, `save_pretrained`, `from_base`, and adapters, for a diffusers pipeline."""

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, **kwargs: Any) -> Self:
        """Load a saved pipeline from a directory or a hub id; `dtype=` as in diffusers.

        Components given by name (`scheduler=...`) replace the saved ones. Raises CheckpointError naming what
        is missing or damaged.
        """
        directory = _local_directory(path_or_id, kwargs)
        config = read_adapter_config(directory)
        # diffusers loads components only of modules that are already imported.
        for module in COMPONENT_MODULES:
            importlib.import_module(module)
        try:
            pipeline = super().from_pretrained(str(directory), **kwargs)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{directory} does not hold a loadable pipeline: {error}") from error
        if config["lora"]:
            check_fingerprint(config["base_fingerprint"], pipeline.unet, directory / CONFIG_FILE)
            path = directory / LORA_FILE
            insert_lora(pipeline.unet, load_lora_file(path), config["lora"], path)
        pipeline.register_to_config(_name_or_path=str(path_or_id))
        pipeline.base_model = config.get("base_model", "")
        pipeline.licence = licence_of(config)
        return pipeline

    def save_pretrained(
        self, save_directory: str | Path, *, licence: str | None = None, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write everything needed to load the pipeline again; images of the loaded one are bit-identical.

        The UNet is stored without LoRA; our LoRA goes beside it. LoRAs of other origin are not stored. Raises
        ConfigError while one is fused, and while layers are offloaded.
        `licence` goes into adapter.json; None names those of pipeline, adapter and joint encoder as they were
        loaded, joined by AND where they differ, or "unknown".
        `push_to_hub` uploads the directory as it is when all of it is written (diffusers would upload before our
        part is there); it takes `repo_id` (default: the directory's name), `private`, `token`, `commit_message`
        and `create_pr` as in diffusers. No model card is made up.

        The folder may hold other files, which stay, and an earlier save, which is replaced file by file once all of the
        new one is written inside the folder (both are on the disk for that time). So a save that fails leaves the
        earlier one whole; one that is killed while files change places leaves no adapter.json, which loading reports.
        Raises CheckpointError when the disk is full or not writable.
        """
        check_unfused(self.unet)
        check_there(self.components)
        directory = Path(save_directory)
        names = ("repo_id", "private", "token", "commit_message", "create_pr")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        # diffusers only logs this and goes on, which would leave a pipeline without that part.
        for path in (directory, *(directory / name for name in self.components)):
            if path.is_file():
                raise CheckpointError(f"{path} is a file where a folder must go: remove it or save elsewhere")
        licence = licence or self._licence_of_parts()
        with staged(directory, last=CONFIG_FILE, optional=LORA_FILE) as folder:
            adapted = self.unet
            try:
                self.unet = base_unet(adapted)
                super().save_pretrained(folder, **kwargs)
            finally:
                self.unet = adapted
            for pattern in ("model_index.json", "*/config.json", "*/scheduler_config.json"):
                for path in folder.glob(pattern):
                    hide_local_path(path)
            channels = {name: getattr(self, name) for name in ("identity_channel", "shading_channel")}
            write_lora(folder, adapted, channels, licence=licence, base_model=self.base_model)
        if push_to_hub:
            private, repo_id = hub.pop("private", None), hub.pop("repo_id", directory.name)
            repo = create_repo(repo_id, exist_ok=True, private=private, token=hub.get("token"))
            self._upload_folder(directory, repo.repo_id, **hub)

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        *,
        adapter: str | Path | None = None,
        dtype: torch.dtype | None = None,
        scheduler: Any = None,
        unet: UNet2DConditionModel | None = None,
        vae: AutoencoderKL | None = None,
        **components: Any,
    ) -> Self:
        """The pipeline on a base in SDXL's layout (`stabilityai/stable-diffusion-xl-base-1.0`, or a
        directory).

        Takes unet, vae and scheduler (of the class that the base names) where they are not given; `joint_encoder`
        and the other components are given by name. The base's own text encoders are not loaded: the joint encoder
        stands in for them. `adapter` is put on top.
        """
        if "joint_encoder" not in components:
            raise ConfigError("from_base needs joint_encoder=: the base has plain text encoders only")
        try:
            if scheduler is None:
                scheduler = _scheduler(base)
            if unet is None:
                unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=dtype)
            if vae is None:
                vae = AutoencoderKL.from_pretrained(base, subfolder="vae", torch_dtype=dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{base} does not hold an SDXL base (unet, vae, scheduler): {error}") from error
        pipeline = cls(unet=unet, vae=vae, scheduler=scheduler, **components)
        pipeline.register_to_config(_name_or_path=str(base))
        pipeline.base_model = str(base)
        if adapter is not None:
            pipeline.load_adapter(adapter)
        return pipeline

    def _licence_of_parts(self) -> str:
        """What is known of pipeline, adapter and joint encoder, as loaded."""
        known = " AND ".join(dict.fromkeys(filter(None, (self.licence, self.adapter_licence))))
        encoder = str(self.joint_encoder.config.get("licence") or "")
        return f"{known or UNKNOWN_LICENCE} AND {encoder}" if encoder not in known else known

    def load_adapter(self, directory: str | Path, *, variant: str | None = None) -> dict[str, Any]:
        """Put a saved adapter (or the added part of a saved pipeline) on this base, in the UNet's dtype; returns its
        configuration. See `makeup_plugin.saving.adapters.load_adapter`.
        """
        return load_adapter(self, directory, variant=variant)

    def save_adapter(self, directory: str | Path, *, licence: str | None = None) -> Path:
        """Write only what was added to the base: LoRA, identity channel, shading channel.

        `licence` goes into adapter.json; None names that of the adapter, or else of the pipeline, as loaded.
        """
        return save_adapter(
            directory,
            unet=self.unet,
            identity_channel=self.identity_channel,
            shading_channel=self.shading_channel,
            licence=licence or self.adapter_licence or self.licence,
            base_model=self.base_model,
        )

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Add a LoRA of other origin (a style, say) to the UNet, as in diffusers.

        It counts at once, beside ours and others that are active; `set_adapters` chooses and weighs them. Parts for
        text encoders are left out with a warning: the joint encoder is not SDXL's. `save_pretrained` does not store
        it. Raises ConfigError where there is no LoRA for a UNet.
        """
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, dict):
            source = source.copy()  # converting other names takes them out of the dictionary
        placing = {name: kwargs.pop(name) for name in ("low_cpu_mem_usage",) if name in kwargs}
        state, alphas, metadata = self.lora_state_dict(
            source, unet_config=self.unet.config, return_lora_metadata=True, **kwargs
        )
        where = "the dictionary" if isinstance(source, dict) else source
        if strange := [key for key in state if "lora" not in key]:
            raise ConfigError(f"{where} is not a LoRA alone: {strange[0]} belongs to no LoRA")
        foreign = [key for key in state if not key.startswith(f"{self.unet_name}.")]
        if len(foreign) == len(state):
            raise ConfigError(f"{where} has no LoRA for a UNet; its names start like {foreign[:1]}")
        if foreign:
            logger.warning("%d tensors for text encoders are left out, e.g. %s", len(foreign), foreign[0])
        with keep_active(self.unet):
            self.load_lora_into_unet(
                state,
                network_alphas=alphas,
                unet=self.unet,
                adapter_name=adapter_name,
                metadata=metadata,
                _pipeline=self,
                hotswap=hotswap,
                **placing,
            )

    def fuse_lora(
        self,
        components: Sequence[str] = ("unet",),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Add the active LoRAs, or `adapter_names`, to the UNet's weights, as in diffusers.

        Nothing can be saved, loaded or removed then until `unfuse_lora`.
        """
        super().fuse_lora(list(components), lora_scale, safe_fusing, adapter_names)

    def unfuse_lora(self, components: Sequence[str] = ("unet",)) -> None:
        """Take fused LoRAs out of the weights again, to rounding; they count as before."""
        super().unfuse_lora(list(components))

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove LoRAs by name, as in diffusers. Raises ConfigError while one is fused."""
        check_unfused(self.unet)
        super().delete_adapters(adapter_names)

    def unload_lora_weights(self) -> None:
        """Remove the LoRAs of other origin; ours stays and counts again (`unload_adapter` removes it)."""
        for name in [name for name in getattr(self.unet, "peft_config", {}) if name != ADAPTER_NAME]:
            remove_lora(self.unet, name=name)
        if getattr(self.unet, "peft_config", {}) and ADAPTER_NAME not in self.unet.active_adapters():
            self.unet.set_adapters([ADAPTER_NAME])

    def unload_adapter(self) -> None:
        """Back to the base model."""
        unload_adapter(self)


def _scheduler(base: str | Path) -> SchedulerMixin:
    """The base's scheduler, of the class that its configuration names."""
    config = DDIMScheduler.load_config(base, subfolder="scheduler")
    name = config.get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise CheckpointError(f"{base}: diffusers has no scheduler {name!r}; give scheduler= of another class")
    return kind.from_config(config)


def _local_directory(path_or_id: str | Path, kwargs: dict[str, Any]) -> Path:
    """The directory itself, or a snapshot of the hub's repository (whole, the LoRA is no diffusers
    component).
    """
    directory = Path(path_or_id)
    if directory.is_dir():
        return directory
    text = str(path_or_id)
    if not is_hub_id(text):
        raise CheckpointError(f"{text} is neither a directory nor a hub id of the form owner/name")
    names = ("revision", "token", "cache_dir", "local_files_only")
    options = {name: kwargs.pop(name) for name in names if name in kwargs}
    try:
        # First alone: a repository without it may hold many gigabytes that are of no use here.
        hf_hub_download(text, CONFIG_FILE, **options)
        return Path(snapshot_download(text, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise CheckpointError(
                f"{text} has no {CONFIG_FILE}: it is no saved FaceMakeUpPipeline; a plain SDXL base is loaded with"
                " FaceMakeUpPipeline.from_base(id, joint_encoder=...)"
            ) from error
        raise CheckpointError(f"{text} is no directory here and could not be fetched from the hub: {error}") from error
