"""Loads the base with the frozen encoder, and other frozen networks of trainings."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import nn

from faceclip import weights
from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError
from faceclip.published.checkpoint import load_faceclip, set_dtypes
from faceclip.published.files import is_hub_id
from faceclip.storage.loading import load_strictly
from faceclip.towers.image import ImageTower
from faceclip.towers.onnx import OnnxFaceEncoder
from faceclip.towers.pretrained import load_tower
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.saving.shipped import SHIPPED, is_shipped, shipped_pipeline, shipped_towers
from train_generator.config import GeneratorConfig
from train_generator.precision import DTYPES, Frozen, half_variant, norms_in_float32

Model = TypeVar("Model", bound=nn.Module)


def build_pipeline(config: GeneratorConfig) -> FaceMakeUpPipeline:
    """Loads the base with the frozen joint encoder, before stage 2 adds anything.

    Raises CheckpointError if parts are missing or damaged, or if the encoder's width is not the UNet's. Raises
    ConfigError for losses that the encoder's recognizer does not support, and if `licence` does not include the
    encoder's licence.
    """
    encoder, image_tower = _joint_encoder(config)
    base = base_directory(config.base, config.frozen_unet)
    with damage_named(f"base={config.base}", "give a directory or hub id with unet, vae and scheduler"):
        unet = _unet(base / "unet", config)
        variant = half_variant(base / "vae", "fp32")
        vae = load_strictly(AutoencoderKL.from_pretrained, AutoencoderKL, base / "vae", variant=variant)
        # A base with another sampler may not set `clip_sample`, and DDIM would then clip latents to ±1.
        scheduler = DDIMScheduler.from_pretrained(base / "scheduler", clip_sample=False)
    if len(encoder.face_encoders) > 1:
        raise ConfigError(
            f"encoder={config.encoder}: each of its branches has a face encoder of its own, and stage 2 "
            "caches the features of one: give an encoder of shared_face=true"
        )
    weighed = [name for name in ("identity", "sampled_identity") if getattr(config.loss, name)]
    face = encoder.face_encoder
    if weighed and isinstance(face, OnnxFaceEncoder) and not face.differentiable:
        raise ConfigError(
            f"loss.{weighed[0]} needs the gradient of the recognizer, and that of encoder={config.encoder} is an ONNX "
            f"graph that torch cannot compute: set {' '.join(f'loss.{name}=0' for name in weighed)}"
        )
    width = encoder.l.text.config.width + encoder.g.text.config.width
    if unet.config.cross_attention_dim != width:
        raise CheckpointError(
            f"the UNet of {config.base} reads tokens of width {unet.config.cross_attention_dim}, the joint encoder "
            f"{config.encoder} gives {width}: they belong to different towers"
        )
    pipeline = FaceMakeUpPipeline(
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        joint_encoder=encoder,
        image_encoder=image_tower,
        face_fitter=_fitter(config.fitter),
        default_call=asdict(config.default_call),
    )
    pipeline.base_model = config.base
    return pipeline


def _joint_encoder(config: GeneratorConfig) -> tuple[FaceCLIP, ImageTower]:
    """Loads the joint encoder, and the image tower that reads references for the identity channel."""
    named, dtype = f"encoder={config.encoder}", DTYPES[config.frozen]
    if is_shipped(config.encoder):
        shipped = shipped_towers(config.encoder, given={"face_fitter": None, "image_encoder": None})
        encoder, beside = shipped["joint_encoder"], weights.path(f"{config.encoder}/image_tower")
        set_dtypes(encoder, dtype, torch.float32)
    else:
        beside = Path(config.encoder) / "image_tower"
        there = Path(config.encoder).exists() or is_hub_id(config.encoder)
        if there and not config.image_tower and not (beside / "config.json").is_file():  # before gigabytes are read
            raise CheckpointError(
                f"{named}: no image_tower beside the encoder, which reads references: give an export of "
                "`python -m train_encoder`, or name a tower by image_tower=, such as image_tower="
                "open_clip:ViT-H-14/laion2b_s32b_b79k"
            )
        remedy = "give a stage-1 export (`python -m train_encoder`), a published FaceCLIP, or tiny, which ships"
        with damage_named(named, remedy):
            encoder = load_faceclip(config.encoder, dtype=dtype, fusion_dtype=torch.float32)
    norms_in_float32(encoder)
    for face in encoder.face_encoders:
        if isinstance(face, OnnxFaceEncoder):  # computes in float32, and rounds to the numbers of its buffers
            face.float()
    check_licence(named, encoder.config.licence, config.licence)
    tower, remedy = named, "run `python -m train_encoder` again"
    if config.image_tower:
        tower, remedy = f"image_tower={config.image_tower}", "give an image tower"
    with damage_named(tower, remedy):
        image_tower = load_tower(config.image_tower or str(beside), "image", dtype=dtype)
    norms_in_float32(image_tower)
    return encoder, image_tower


def _unet(folder: Path, config: GeneratorConfig) -> UNet2DConditionModel:
    """Loads the base's UNet, in the type of frozen weights unless the whole UNet is trained."""
    variant, dtype = half_variant(folder, config.frozen_unet), DTYPES[config.frozen_unet]
    kind = UNet2DConditionModel
    unet = load_strictly(kind.from_pretrained, kind, folder, torch_dtype=dtype, variant=variant)
    norms_in_float32(unet)
    return unet


def check_licence(part: str, licence: str | None, whole: str) -> None:
    """Raises ConfigError unless `whole`, the licence of the export, includes the part's licence, if it has one."""
    if licence and str(licence) not in whole:
        raise ConfigError(
            f"{part}: its licence is {licence}, the export's would be {whole}: set licence= to one that holds both"
        )


def base_directory(name: str, frozen: Frozen = "fp32") -> Path:
    """Returns the directory of a base: a directory, the shipped pipeline (`tiny`), or a hub id, which is downloaded.

    If frozen weights have 16 bits, only the UNet's files in fp16 are downloaded. Raises CheckpointError if there is no
    such base; misspelt paths are not looked up on the hub.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if "/" in name:
        if not is_hub_id(name):
            raise CheckpointError(f"base={name}: no such directory; give one with unet, vae and scheduler")
        settings = [f"{part}/*.json" for part in ("unet", "vae", "scheduler")]
        wanted = ["unet/*.safetensors" if frozen == "fp32" else "unet/*.fp16*.safetensors", "vae/*.safetensors"]
        with damage_named(f"base={name}", "it is no directory here: check the hub id and the network"):
            found = Path(snapshot_download(name, allow_patterns=[*settings, *wanted]))
            if not any((found / "unet").glob("*.safetensors")):  # a base without files of fp16
                found = Path(snapshot_download(name, allow_patterns=[*settings, "unet/*.safetensors", wanted[1]]))
            return found
    if name not in SHIPPED:
        raise CheckpointError(
            f"base={name}: no such directory; give one, a hub id or {', '.join(SHIPPED)}, which ships"
        )
    return shipped_pipeline(name)


@contextmanager
def damage_named(argument: str, remedy: str) -> Iterator[None]:
    """Context that turns the errors of libraries about missing or damaged files into a CheckpointError, which names the
    argument and the remedy."""
    try:
        yield
    except (CheckpointError, OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{argument} cannot be loaded; {remedy} ({error})") from error


def load_frozen(kind: type[Model], path: Path, argument: str, remedy: str, *, variant: str | None = None) -> Model:
    """Loads a frozen model from a `save_pretrained` folder, from the files of `variant` if one is given.

    Raises CheckpointError, which names the argument, if the folder is missing or damaged.
    """
    if not path.is_dir():
        raise CheckpointError(f"{argument}={path}: no such directory; {remedy}")
    with damage_named(f"{argument}={path}", remedy):
        options = {"variant": variant} if variant else {}
        return load_strictly(kind.from_pretrained, kind, path, **options).requires_grad_(False).eval()


def _fitter(name: str) -> nn.Module | None:
    if not name:
        return None
    from faceclip.face3d.fitter import FaceFitter

    path = Path(name) if Path(name).is_dir() else weights.path(name)
    return load_frozen(FaceFitter, path, "fitter", "train it by `python -m train_encoder.towers.fitter`")
