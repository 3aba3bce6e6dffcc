"""Saving and loading the whole pipeline: the unchanged base model, and next to it what training added.

The directory has the layout of diffusers (model_index.json, one folder per component) and of an adapter
(`makeup_plugin.saving.adapters`), so `load_adapter` accepts it too. adapter.json is written last and marks a complete
save.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import AutoencoderKL, MultiControlNetModel, UNet2DConditionModel
from diffusers.utils import logging
from huggingface_hub import create_repo
from safetensors import SafetensorError
from torch import Tensor

from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.loading import DAMAGE, building, check_finite, load_strictly
from faceclip.storage.staging import staged
from makeup_plugin.arguments import check_adapter_name, path_of
from makeup_plugin.saving.adapters import (
    ADAPTER_NAME,
    CONFIG_FILE,
    LORA_FILE,
    UNKNOWN_LICENCE,
    base_unet,
    check_there,
    check_unfused,
    hide_local_path,
    insert_lora,
    keep_active,
    licence_of,
    load_adapter,
    read_adapter_config,
    remove_lora,
    save_adapter,
    unload_adapter,
    write_lora,
)
from makeup_plugin.saving.clip_parts import load_clip_parts
from makeup_plugin.saving.fingerprint import check_fingerprint
from makeup_plugin.saving.index import check_pipeline
from makeup_plugin.saving.loaded import check_loaded
from makeup_plugin.saving.lora_files import read_lora_file
from makeup_plugin.saving.places import local_directory
from makeup_plugin.saving.quantized import (
    check_plain,
    check_plain_unet,
    check_quantization,
    check_unquantized,
    is_quantized,
)
from makeup_plugin.saving.schedulers import load_scheduler
from makeup_plugin.saving.several_controlnets import remove_further
from makeup_plugin.saving.shipped import is_shipped, shipped_towers
from makeup_plugin.saving.whole_unet import holds_unet
from makeup_plugin.turns import change_in_turn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Mixed  # the class whose methods these override
else:
    Mixed = object

logger = logging.get_logger(__name__)
COMPONENT_MODULES = (
    "faceclip.encoder",
    "faceclip.towers.image",
    "faceclip.image_tower",  # of pipelines saved before version 0.2
    "faceclip.face3d.fitter",
    "faceclip.towers.face",
    "faceclip.towers.onnx",
    "makeup_plugin.identity",
)

# Arguments of the pipeline that are settings and no parts.
SETTINGS = ("add_watermark", "default_call", "control_map", "force_zeros_for_empty_prompt", "published")


class PipelineStorageMixin(Mixed):
    """`from_pretrained`, `save_pretrained`, `from_base`, and adapters, for a diffusers pipeline."""

    unet: UNet2DConditionModel

    @classmethod
    def from_pretrained(cls, path_or_id: str | Path, **kwargs: Any) -> Self:
        """Load a saved pipeline from a directory, a hub id, or the name "tiny" of the one that ships with the package.

        `dtype=` works as in diffusers. A directory of that name comes first. Components given by name (`scheduler=...`)
        replace the saved ones. Raises CheckpointError, which names the missing or damaged file.
        """
        check_quantization(kwargs.get("quantization_config"))
        directory = local_directory(path_or_id, kwargs)
        config = read_adapter_config(directory)
        # diffusers loads components only of modules that are already imported.
        for module in COMPONENT_MODULES:
            importlib.import_module(module)
        parts, _ = cls._get_signature_keys(cls)
        with building:
            names = [name for name in parts if name not in ("self", *SETTINGS)]
            towers = shipped_towers(str(path_or_id), given=kwargs) if is_shipped(path_or_id) else {}
            given = {**kwargs, **towers, **load_clip_parts(directory, names, given=kwargs)}
            weighty = check_pipeline(
                directory, names, cls._optional_components, given=given, variant=kwargs.get("variant")
            )
            try:
                pipeline = super().from_pretrained(str(directory), **given)
            except (CheckpointError, *DAMAGE, SafetensorError) as error:
                raise CheckpointError(f"{directory} does not hold a loadable pipeline: {error}") from error
            for name in weighty:
                if not is_quantized(getattr(pipeline, name)):
                    check_finite(getattr(pipeline, name).state_dict(), directory / name)
            pipeline._add_saved(directory, config)
        pipeline.register_to_config(_name_or_path=str(path_or_id))
        return pipeline

    def _add_saved_rest(self, path_or_id: str | Path) -> None:
        """Adds the parts that `DiffusionPipeline.from_pretrained` leaves out.

        Raises CheckpointError, as `from_pretrained` does, and for a hub id, whose revision is not known here: another
        one has another LoRA.
        """
        directory = Path(path_or_id)
        if not directory.is_dir():
            raise CheckpointError(
                f"{path_or_id} is no directory: load a hub id by {type(self).__name__}.from_pretrained"
            )
        config = read_adapter_config(directory)
        with building:
            check_loaded(directory, self.components)
            self._add_saved(directory, config)

    def _add_saved(self, directory: Path, config: dict[str, Any]) -> None:
        """Our LoRA on the UNet, and what adapter.json says. Raises ConfigError for a part that is quantized wrongly."""
        check_plain(self.components)
        if config["lora"]:
            check_plain_unet(self.unet, directory / LORA_FILE)
            check_fingerprint(config["base_fingerprint"], self.unet, directory / CONFIG_FILE)
            path = directory / LORA_FILE
            insert_lora(self.unet, read_lora_file(path), config["lora"], path)
        self.base_model = config.get("base_model", "")
        self.licence = licence_of(config)
        self.whole_unet = holds_unet(config)

    @change_in_turn
    def save_pretrained(
        self, save_directory: str | Path, *, licence: str | None = None, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write everything that is needed to load the pipeline again. The loaded pipeline draws bit-identical images.

        The UNet is stored without LoRA, and our LoRA next to it. LoRAs of other origin are not stored.

        An earlier save in the folder is replaced file by file once all of the new one is written inside the folder
        (both are on the disk for that time), and other files stay. A save that fails therefore leaves the earlier one
        whole. A save that is killed while files change places leaves no adapter.json, which loading reports.

        Args:
            save_directory: the folder. It is created.
            licence: the text for adapter.json. None takes the licences of pipeline, adapter and joint encoder as they
                were loaded, joined by AND where they differ, or "unknown".
            push_to_hub: upload the finished directory (diffusers would upload before our part is written). It takes
                `repo_id` (default: the directory's name), `private`, `token`, `commit_message` and `create_pr` as in
                diffusers. No model card is generated.

        Raises:
            ConfigError: a LoRA is fused, or layers are offloaded.
            CheckpointError: the disk is full or not writable, or a file lies where a folder must go.
        """
        check_unfused(self.unet)
        check_there(self.components)
        check_unquantized(self.components)
        directory = path_of("save_directory", save_directory)
        names = ("repo_id", "private", "token", "commit_message", "create_pr")
        hub = {name: kwargs.pop(name) for name in names if name in kwargs}
        # diffusers only logs this and continues, which would save a pipeline without that part.
        for path in (directory, *(directory / name for name in self.components)):
            if path.is_file():
                raise CheckpointError(f"{path} is a file where a folder must go: remove it, or save elsewhere")
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
            write_lora(
                folder, adapted, channels, licence=licence, base_model=self.base_model, whole_unet=self.whole_unet
            )
        if isinstance(self.controlnet, MultiControlNetModel):
            remove_further(directory, self.controlnet)
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
        """Build the pipeline on a base in SDXL's layout (`stabilityai/stable-diffusion-xl-base-1.0`, or a directory).

        The base gives unet, vae and scheduler (of the class that it names) where they are not given. You give
        `joint_encoder` and the other components by name. The joint encoder replaces the base's text encoders, which are
        not loaded. `adapter` is loaded on top.

        Raises ConfigError without `joint_encoder`, and CheckpointError where the base has no such parts.
        """
        if "joint_encoder" not in components:
            raise ConfigError("from_base needs joint_encoder=: the base has only plain text encoders")
        try:
            if scheduler is None:
                scheduler = load_scheduler(base)
            if unet is None:
                kind: Any = UNet2DConditionModel
                unet = load_strictly(kind.from_pretrained, kind, base, subfolder="unet", torch_dtype=dtype)
            if vae is None:
                kind = AutoencoderKL
                vae = load_strictly(kind.from_pretrained, kind, base, subfolder="vae", torch_dtype=dtype)
        except (CheckpointError, *DAMAGE, SafetensorError) as error:
            raise CheckpointError(f"{base} does not hold an SDXL base (unet, vae, scheduler): {error}") from error
        pipeline = cls(unet=unet, vae=vae, scheduler=scheduler, **components)
        pipeline.register_to_config(_name_or_path=str(base))
        pipeline.base_model = str(base)
        if adapter is not None:
            pipeline.load_adapter(adapter)
        return pipeline

    @classmethod
    def from_published(cls, kind: str, weights: str | Path, *, base: str | Path, **parts: Any) -> Self:
        """A pipeline of weights that others published, ready to draw.

        Args:
            kind: "faceclip-sdxl", "facemakeup-v1", "facemakeup-v2", "ip-adapter-faceid", "ip-adapter-faceid-plus",
                "ip-adapter-faceid-plusv2" or "instantid".
            weights: the file, a folder with a copy of the repository, or its hub id.
            base: SD 1.5 or SDXL in diffusers' layout, a folder or a hub id.
            parts: of an adapter, `face_encoder`: the recognizer it was trained with, "onnx:w600k_r50.onnx" or a module;
                `image_encoder`: for the kinds that read image tokens, a CLIP tower's folder, hub id or module;
                `controlnet`: InstantID's ControlNet where it does not lie beside the file; `face_fitter`: draws the
                shading maps of facemakeup-v2; `lora`: True for the one in the file, False for none, or a file of its
                own; `shortcut`: whether the perceiver's output is added to the identity, where the kind leaves a
                choice. Of faceclip-sdxl, `unet`: the release's UNet where it does not lie beside the encoder. Of all,
                `vae`, `scheduler`, `dtype`, and `revision` of a hub id.

        The licence of the weights is logged, and saved with the pipeline (`config.published`, adapter.json).

        Raises:
            ConfigError: an unknown kind, a part that is missing or that the kind does not have, or parts that do not
                fit together. CheckpointError: a file that is missing, damaged, or of another kind or base.
        """
        from makeup_plugin.published.build import build_published

        return build_published(cls, kind, weights, base=base, **parts)

    def _licence_of_parts(self) -> str:
        """The known licences of pipeline, adapter and joint encoder, as they were loaded."""
        known = " AND ".join(dict.fromkeys(filter(None, (self.licence, self.adapter_licence))))
        encoder = "" if self.joint_encoder is None else str(self.joint_encoder.config.get("licence") or "")
        return f"{known or UNKNOWN_LICENCE} AND {encoder}" if encoder not in known else known

    @change_in_turn
    def load_adapter(self, directory: str | Path, *, variant: str | None = None) -> dict[str, Any]:
        """Add a saved adapter (or the added part of a saved pipeline) to this base, in the UNet's dtype.

        Returns its configuration. See `makeup_plugin.saving.adapters.load_adapter` for the errors.
        """
        return load_adapter(self, path_of("directory", directory), variant=variant)

    @change_in_turn
    def save_adapter(self, directory: str | Path, *, licence: str | None = None) -> Path:
        """Write only what training added to the base: LoRA (or the whole UNet, where all of it was trained), identity
        channel, shading channel.

        `licence` is the text for adapter.json. None takes that of the adapter, or else of the pipeline, as loaded.
        """
        return save_adapter(
            path_of("directory", directory),
            unet=self.unet,
            identity_channel=self.identity_channel,
            shading_channel=self.shading_channel,
            licence=licence or self.adapter_licence or self.licence,
            base_model=self.base_model,
            whole_unet=self.whole_unet,
        )

    @change_in_turn
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Add a LoRA of other origin (for example a style) to the UNet, as in diffusers.

        It is active at once, beside ours and other active ones; `set_adapters` chooses and weighs them. Parts for text
        encoders are ignored with a warning, since the joint encoder is not SDXL's. `save_pretrained` does not store it.
        Raises ConfigError where there is no LoRA for a UNet.
        """
        check_adapter_name(adapter_name)
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, dict):
            source = source.copy()  # the conversion of other names removes them from the dictionary
        placing = {name: kwargs.pop(name) for name in ("low_cpu_mem_usage",) if name in kwargs}
        state, alphas, metadata = self.lora_state_dict(
            source, unet_config=self.unet.config, return_lora_metadata=True, **kwargs
        )
        where = "the dictionary" if isinstance(source, dict) else source
        if strange := [key for key in state if "lora" not in key]:
            raise ConfigError(
                f"{where} holds more than a LoRA: {strange[0]} belongs to no LoRA; give a file with LoRA weights only"
            )
        foreign = [key for key in state if not key.startswith(f"{self.unet_name}.")]
        if len(foreign) == len(state):
            raise ConfigError(
                f"{where} has no LoRA for a UNet, its first name is {foreign[:1]}: give a LoRA that was made for SDXL"
            )
        if foreign:
            logger.warning("%d tensors for text encoders are ignored, e.g. %s", len(foreign), foreign[0])
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

    @change_in_turn
    def fuse_lora(
        self,
        components: Sequence[str] = ("unet",),
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Add the active LoRAs, or `adapter_names`, to the UNet's weights, as in diffusers.

        Until `unfuse_lora` nothing can be saved, loaded or removed.
        """
        super().fuse_lora(list(components), lora_scale, safe_fusing, adapter_names)

    @change_in_turn
    def unfuse_lora(self, components: Sequence[str] = ("unet",)) -> None:
        """Remove fused LoRAs from the weights again, up to rounding. They are active as before."""
        super().unfuse_lora(list(components))

    @change_in_turn
    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove LoRAs by name, as in diffusers. Raises ConfigError while one is fused."""
        check_unfused(self.unet)
        super().delete_adapters(adapter_names)

    @change_in_turn
    def unload_lora_weights(self) -> None:
        """Remove the LoRAs of other origin. Ours stays and is active again (`unload_adapter` removes it)."""
        for name in [name for name in getattr(self.unet, "peft_config", {}) if name != ADAPTER_NAME]:
            remove_lora(self.unet, name=name)
        if getattr(self.unet, "peft_config", {}) and ADAPTER_NAME not in self.unet.active_adapters():
            self.unet.set_adapters([ADAPTER_NAME])

    @change_in_turn
    def unload_adapter(self) -> None:
        """Return to the base model: remove our LoRA and the channels, or put back the UNet that the adapter replaced.

        Raises ConfigError where the UNet was trained as a whole and the base's is not here, as in a pipeline of
        `from_pretrained`.
        """
        unload_adapter(self)
