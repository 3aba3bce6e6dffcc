"""A pipeline of published weights: the base's own parts, the adapter on its UNet, and what it reads beside them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from faceclip.errors import CheckpointError, ConfigError
from faceclip.published.checkpoint import load_faceclip
from faceclip.published.files import resolve
from faceclip.published.unet import UNET_FILE, load_unet
from faceclip.storage.loading import DAMAGE, load_strictly
from faceclip.storage.regular import read_settings
from faceclip.towers.pretrained import load_tower
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.published.adapters import PublishedAdapter, load_adapter_file
from makeup_plugin.published.kinds import FACECLIP, LICENCES, PublishedKind, kind_of
from makeup_plugin.published.lora import read_lora
from makeup_plugin.saving.adapters import insert_lora
from makeup_plugin.saving.clip_parts import load_clip_part
from makeup_plugin.saving.schedulers import load_scheduler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base's own parts by their names in a pipeline. form: "sd15" or "sdxl"."""

    form: str
    parts: dict[str, Any]
    silent_negative: bool


def build_published(
    cls: Any,
    kind: str,
    weights: str | Path,
    *,
    base: str | Path,
    unet: str | Path | None = None,
    face_encoder: Any = None,
    image_encoder: Any = None,
    face_fitter: Any = None,
    controlnet: str | Path | None = None,
    vae: AutoencoderKL | str | Path | None = None,
    scheduler: Any = None,
    lora: str | Path | bool = True,
    shortcut: bool | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """See `FaceMakeUpPipeline.from_published`; cls is that class."""
    logger.warning("%s: licence: %s; the base and the recognizer have licences of their own", weights, _licence(kind))
    if kind == FACECLIP:
        others = {"face_encoder": face_encoder, "image_encoder": image_encoder, "controlnet": controlnet}
        others |= {"face_fitter": face_fitter, "shortcut": shortcut, "lora": None if lora is True else lora}
        if given := [name for name, value in others.items() if value is not None]:
            raise ConfigError(f"{given[0]} is no part of {FACECLIP}, which has the joint encoder alone: leave it out")
        pipeline, place = _build_faceclip(cls, weights, base, unet, vae, scheduler, revision, dtype)
    else:
        chosen = kind_of(kind)
        if unet is not None:
            raise ConfigError(f"unet is a file of {FACECLIP} alone: leave it out, the base has a UNet")
        found = load_base(base, vae=vae, scheduler=scheduler, dtype=dtype)
        place = find_file(weights, _file_of(chosen, kind, found.form), revision)
        pipeline = _build_adapter(
            cls,
            chosen,
            place,
            found,
            face_encoder=face_encoder,
            image_encoder=image_encoder,
            face_fitter=face_fitter,
            controlnet=controlnet,
            lora=lora,
            shortcut=shortcut,
            dtype=dtype,
            published=_record(kind, weights, place),
        )
    pipeline.register_to_config(_name_or_path=str(weights), published=_record(kind, weights, place))
    pipeline.base_model, pipeline.licence = str(base), _licence(kind)
    return pipeline


def load_base(base: str | Path, *, vae: Any = None, scheduler: Any = None, dtype: torch.dtype | None = None) -> Base:
    """UNet, VAE, scheduler, text towers and tokenizers of a base in diffusers' layout, a folder or a hub id.

    Raises CheckpointError, which names the part, for what is missing or damaged, and for a base that is neither SD 1.5
    nor SDXL.
    """
    index = _index_of(base)
    parts: dict[str, Any] = {
        "unet": load_model(UNet2DConditionModel, base, "unet", dtype),
        "vae": _vae(base, vae, dtype),
        "scheduler": scheduler if scheduler is not None else load_scheduler(base),
    }
    added = parts["unet"].config.addition_embed_type
    if added not in (None, "text_time"):
        raise CheckpointError(f"{base}: a UNet with addition_embed_type {added!r} is neither SD 1.5's nor SDXL's")
    form = "sdxl" if added else "sd15"
    towers = {"text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer}
    if form == "sdxl":
        towers |= {"text_encoder_2": CLIPTextModelWithProjection, "tokenizer_2": CLIPTokenizer}
    for name, kind in towers.items():
        parts[name] = load_clip_part(kind, base, subfolder=name, dtype=dtype)
    silent = form == "sdxl" and bool(index.get("force_zeros_for_empty_prompt", True))
    return Base(form=form, parts=parts, silent_negative=silent)


def load_model(
    kind: Any, source: str | Path, subfolder: str, dtype: torch.dtype | None, *, revision: str | None = None
) -> Any:
    """A diffusers model of a folder or hub id, strictly. Raises CheckpointError, which names it."""
    try:
        options: dict[str, Any] = {"subfolder": subfolder or None, "torch_dtype": dtype or torch.float32}
        options |= {"revision": revision} if revision else {}
        return load_strictly(kind.from_pretrained, kind, source, **options).eval()
    except (*DAMAGE, SafetensorError) as error:
        raise CheckpointError(f"{Path(source, subfolder)} cannot be loaded as {kind.__name__} ({error})") from error


def find_file(weights: str | Path, file: str, revision: str | None) -> Path:
    """The local path of the weights' file. Raises CheckpointError where there is none, ConfigError without a path."""
    path = resolve(weights, file, revision=revision)
    if path.is_dir():
        raise CheckpointError(f"{path} holds no {file}: give the file itself, or a folder that holds it")
    return path


def _build_adapter(
    cls: Any,
    kind: PublishedKind,
    path: Path,
    base: Base,
    *,
    face_encoder: Any,
    image_encoder: Any,
    face_fitter: Any,
    controlnet: str | Path | None,
    lora: str | Path | bool,
    shortcut: bool | None,
    dtype: torch.dtype | None,
    published: dict[str, str],
) -> Any:
    unet = base.parts["unet"]
    settings = kind.settings(shortcut)
    adapter = load_adapter_file(path, unet, form=kind.form, roots=kind.roots, dtype=unet.dtype, **settings)
    recognizer = _face_encoder(face_encoder, adapter.identity_channel)
    tower = _image_encoder(image_encoder, adapter.identity_channel, dtype)
    control = adapter.shading_channel
    if kind.control_folder:
        control = _control_folder(kind, path, controlnet, published, unet.dtype)
    elif controlnet is not None:
        raise ConfigError("controlnet is no part of this kind, or lies in its file: leave it out")
    _insert(adapter, lora, unet)
    return cls(
        **base.parts,
        identity_channel=adapter.identity_channel,
        shading_channel=control,
        image_encoder=tower,
        face_encoder=recognizer,
        face_fitter=face_fitter,
        control_map=kind.control_map or "shading",
        force_zeros_for_empty_prompt=base.silent_negative,
        published=published,
    )


def _build_faceclip(
    cls: Any,
    weights: str | Path,
    base: str | Path,
    unet: str | Path | None,
    vae: Any,
    scheduler: Any,
    revision: str | None,
    dtype: torch.dtype | None,
) -> tuple[Any, Path]:
    place = resolve(weights, "model/face_clip_encoder.pt", revision=revision)
    beside = place.with_name(Path(UNET_FILE).name) if place.is_file() else weights
    pipeline = cls.from_base(
        base,
        joint_encoder=load_faceclip(place, dtype=dtype),
        unet=load_unet(unet if unet is not None else _there(beside, place), dtype=dtype),
        vae=_vae(base, vae, dtype),
        scheduler=scheduler,
        dtype=dtype,
    )
    return pipeline, place


def _vae(base: str | Path, given: Any, dtype: torch.dtype | None) -> AutoencoderKL:
    if given is None:
        return load_model(AutoencoderKL, base, "vae", dtype)
    return load_model(AutoencoderKL, given, "", dtype) if isinstance(given, str | Path) else given


def _there(unet: str | Path, weights: Path) -> str | Path:
    if isinstance(unet, Path) and not unet.is_file():
        raise ConfigError(f"unet: there is no {unet.name} beside {weights}: give the place of the release's UNet")
    return unet


def _insert(adapter: PublishedAdapter, lora: str | Path | bool, unet: UNet2DConditionModel) -> None:
    if lora is True and adapter.lora_settings is not None:
        insert_lora(unet, adapter.lora, adapter.lora_settings, Path("ip_adapter"))
    elif not isinstance(lora, bool):
        insert_lora(unet, *read_lora(lora, unet), Path(lora))


def _face_encoder(given: Any, channel: IdentityChannel) -> Any:
    if given is None:
        raise ConfigError(
            "face_encoder is missing: give the recognizer that the weights were trained with, 'onnx:w600k_r50.onnx' of"
            " insightface's buffalo_l (Face-MakeUp, IP-Adapter-FaceID) or 'onnx:glintr100.onnx' of antelopev2"
            " (InstantID); both are for non-commercial research only"
        )
    if isinstance(given, str | Path):
        name = str(given)
        given = load_tower(f"onnx:{name}" if name.endswith(".onnx") and ":" not in name else name, "face")
    size = given.config.embedding_dim
    if size != channel.config.identity_dim:
        raise ConfigError(
            f"face_encoder gives identities of {size} numbers, and the weights read {channel.config.identity_dim}: give"
            " the recognizer that they were trained with"
        )
    return given


def _image_encoder(given: Any, channel: IdentityChannel, dtype: torch.dtype | None) -> Any:
    if not channel.reads_image:
        if given is not None:
            raise ConfigError("image_encoder is no part of this kind, which reads the identity alone: leave it out")
        return None
    if given is None:
        raise ConfigError(
            "image_encoder is missing: give the CLIP image tower that the weights were trained with, a folder, a hub id"
            " (laion/CLIP-ViT-H-14-laion2B-s32B-b79K) or 'open_clip:ViT-H-14/laion2b_s32b_b79k'"
        )
    if isinstance(given, str | Path):
        if str(given).startswith("open_clip:") or _class_in(given) == "ImageTower":
            given = load_tower(str(given), "image").to(dtype or torch.float32)
        else:
            given = load_clip_part(CLIPVisionModelWithProjection, given, dtype=dtype)
    config = given.config
    width = getattr(config, "hidden_size", None) or config.width
    if width != channel.config.image_dim:
        raise ConfigError(
            f"image_encoder gives tokens of width {width}, and the weights read {channel.config.image_dim}: give the"
            " CLIP image tower that they were trained with"
        )
    return given


def _control_folder(
    kind: PublishedKind, path: Path, given: str | Path | None, published: dict[str, str], dtype: torch.dtype
) -> ControlNetModel:
    """The ControlNet that is given, or the one beside the file: in its folder, or in its repository at its commit."""
    if given is None and (commit := published["revision"]):
        return load_model(ControlNetModel, published["weights"], kind.control_folder, dtype, revision=commit)
    place = Path(path.parent, kind.control_folder) if given is None else given
    if given is None and not Path(place).is_dir():
        raise ConfigError(f"controlnet is missing: there is no folder {place}; give the place of {kind.control_folder}")
    return load_model(ControlNetModel, place, "", dtype)


def _file_of(kind: PublishedKind, name: str, form: str) -> str:
    if form not in kind.bases:
        raise ConfigError(f"base: {name} is made for {', '.join(kind.bases)}, and this base is {form}")
    return kind.files.get(form, next(iter(kind.files.values())))


def _class_in(folder: str | Path) -> str:
    path = Path(folder, "config.json")
    return str(read_settings(path).get("_class_name", "")) if path.is_file() else ""


def _index_of(base: str | Path) -> dict[str, Any]:
    if Path(base).is_dir():
        return read_settings(Path(base, "model_index.json"))
    try:
        return dict(DiffusionPipeline.load_config(str(base)))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"base: {base} is no folder, and could not be fetched from the hub ({error})") from error


def _licence(kind: str) -> str:
    if kind not in LICENCES:
        kind_of(kind)
    return LICENCES[kind]


def _record(kind: str, weights: str | Path, path: Path) -> dict[str, str]:
    """What a saved pipeline says of its weights: no path of this machine, and the commit where they came from a hub."""
    parts = path.parts
    cached = "snapshots" in parts[:-1] and not Path(weights).exists()
    commit = parts[parts.index("snapshots") + 1] if cached else ""
    name = str(weights) if commit else Path(weights).name
    return {"kind": kind, "weights": name, "revision": commit, "licence": _licence(kind)}
