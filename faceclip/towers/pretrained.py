"""Towers of other projects in our classes: CLIP towers by open_clip id, face encoders of arcface_torch and insightface.

    open_clip:ViT-L-14-quickgelu/metaclip_fullcc     a model of open_clip and its pretrained tag (empty: random)
    arcface:backbone.pth                             a ViT or ResNet of arcface_torch, any depth (non-commercial)
    onnx:w600k_r50.onnx                              a recognizer of an insightface pack (non-commercial)
    dlib, dlib:FILE                                  dlib's recognizer (CC0) of the extra `photos`, or a file of it

open_clip downloads hub weights. `load_tower` resolves these names, and also takes directories of ours and names of
shipped weights (`tiny/recognizer`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor, nn

from faceclip import weights
from faceclip.errors import CheckpointError, ConfigError
from faceclip.published.files import read_checkpoint
from faceclip.storage.loading import load_strictly
from faceclip.towers.dlib import DlibFaceEncoder
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.iresnet import FaceResNet, is_resnet, resnet_of
from faceclip.towers.onnx import OnnxFaceEncoder
from faceclip.towers.text import TextTower

Kind = Literal["face", "text", "image"]
CLASSES = {"face": FaceViT, "text": TextTower, "image": ImageTower}
_TEXT_STATE = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")


def load_tower(name: str, kind: Kind, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Loads the tower that `name` stands for, frozen and in evaluation mode, its weights as `dtype`.

    Raises:
        CheckpointError: there is nothing of that name, or it is of another class, damaged, or does not fit the class.
        ConfigError: the open_clip id does not exist, the weights are for another activation than the model's, or the
            source has no tower of this kind.
    """
    source, _, rest = name.partition(":")
    of_dlib = source == "dlib" and not Path(name).is_dir()
    if kind != "face" and (of_dlib or (source in ("arcface", "onnx") and rest)):
        raise ConfigError(f"{name}: a recognizer of {source} is a face encoder, not a {kind} tower")
    if source == "open_clip" and rest:
        tower = _from_open_clip(rest, kind)
    elif source == "arcface" and rest:
        tower = face_encoder_from_arcface(Path(rest))
    elif source == "onnx" and rest:
        tower = OnnxFaceEncoder.from_onnx(rest)
    elif of_dlib:
        tower = DlibFaceEncoder.from_dlib(rest or None)
    else:
        directory = Path(name) if Path(name).is_dir() else weights.path(name)
        tower = load_strictly(CLASSES[kind].from_pretrained, CLASSES[kind], directory, torch_dtype=dtype)
    return nn.Module.to(tower, dtype).requires_grad_(False).eval()


def _from_open_clip(spec: str, kind: Kind) -> nn.Module:
    model_name, _, tag = spec.partition("/")
    if kind == "face":
        remedy = "give arcface:FILE, onnx:FILE or a directory"
        raise ConfigError(f"open_clip:{spec}: open_clip has no face encoder; {remedy}")
    if model_name not in open_clip.list_models():
        raise ConfigError(f"open_clip:{spec}: no model {model_name!r} in open_clip {open_clip.__version__}")
    if tag and tag not in open_clip.list_pretrained_tags_by_model(model_name):
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model_name))
        raise ConfigError(f"open_clip:{spec}: {model_name} has no weights {tag!r}; there are: {known}")
    settings = open_clip.get_model_config(model_name)
    quick = bool(settings.get("quick_gelu", False))
    if tag and bool(open_clip.get_pretrained_cfg(model_name, tag).get("quick_gelu", False)) != quick:
        other = model_name.removesuffix("-quickgelu") if quick else f"{model_name}-quickgelu"
        raise ConfigError(
            f"open_clip:{spec}: the weights {tag!r} were trained with another activation than that of "
            f"{model_name}; take {other}"
        )
    if kind == "text" and not {"width", "layers", "heads"} <= settings["text_cfg"].keys():
        raise ConfigError(f"open_clip:{spec}: its text side is no transformer of open_clip's own")
    try:
        model = open_clip.create_model(model_name, pretrained=tag or None)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"open_clip:{spec}: the weights could not be fetched or read ({error}): check the "
            "network, or give a directory"
        ) from error
    return (text_tower_from_open_clip if kind == "text" else image_tower_from_open_clip)(model, settings, quick)


def text_tower_from_open_clip(model: nn.Module, settings: dict, quick_gelu: bool) -> TextTower:
    """Returns the text side of an open_clip `CLIP` model."""
    text = settings["text_cfg"]
    tower = TextTower(
        width=text["width"],
        layers=text["layers"],
        heads=text["heads"],
        context=text.get("context_length", 77),
        quick_gelu=quick_gelu,
        embed_dim=settings["embed_dim"],
        mlp_ratio=text.get("mlp_ratio", 4.0),
    )
    state = {k: v for k, v in model.state_dict().items() if k.startswith(_TEXT_STATE)}
    _load(tower.tower, state, "text tower")
    return tower


def image_tower_from_open_clip(model: nn.Module, settings: dict, quick_gelu: bool) -> ImageTower:
    """Returns the image side of an open_clip `CLIP` model with a plain ViT, and its pixels' mean and std."""
    vision = settings["vision_cfg"]
    if not isinstance(vision.get("layers"), int) or "patch_size" not in vision:
        raise ConfigError("this open_clip model's image side is no vision transformer")
    # What the weights were trained on: a tag may have its own (ViT-L-14/laion2b_s32b_b82k: all .5).
    pixels = getattr(model.visual, "preprocess_cfg", {})
    normalization = {name: tuple(pixels[name]) for name in ("mean", "std") if name in pixels}
    tower = ImageTower(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=vision["width"],
        layers=vision["layers"],
        heads=vision["width"] // vision.get("head_width", 64),
        embed_dim=settings["embed_dim"],
        mlp_ratio=vision.get("mlp_ratio", 4.0),
        quick_gelu=quick_gelu,
        **normalization,
    )
    _load(
        tower.tower,
        {k.removeprefix("visual."): v for k, v in model.state_dict().items() if k.startswith("visual.")},
        "image tower",
    )
    return tower


def face_encoder_from_arcface(path: Path) -> FaceViT | FaceResNet:
    """Returns the face encoder in an arcface_torch file, a vision transformer or a residual network of any depth and
    width (our parameter names are the same). Transformers have eight heads, as all that are published."""
    if path.suffix == ".onnx":
        raise ConfigError(f"arcface:{path} is an ONNX file: write onnx:{path}")
    state = read_checkpoint(path)
    if is_resnet(state):
        resnet = resnet_of(state, str(path))
        _load(resnet, {"pos_embed": resnet.pos_embed} | state, str(path))
        return resnet
    encoder = FaceViT(**_transformer_sizes(state, str(path)))
    _load(encoder, {"mask_token": encoder.mask_token.detach()} | state, str(path))  # used in training only
    return encoder


def _transformer_sizes(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """Returns the arguments of `FaceViT` for a state of arcface_torch."""
    needed = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "feature.2.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        remedy = "give a backbone of insightface's arcface_torch"
        raise CheckpointError(f"{where} has no {missing[0]}, as a vision transformer has: {remedy}", missing=missing)
    width, patch = int(state[needed[0]].shape[0]), int(state[needed[0]].shape[-1])
    grid = round(state["pos_embed"].shape[1] ** 0.5)
    return {
        "image_size": 112 if 112 // patch == grid else grid * patch,
        "patch_size": patch,
        "width": width,
        "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "embedding_dim": int(state["feature.2.weight"].shape[0]),
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }


def _load(module: nn.Module, state: dict, where: str) -> None:
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: the weights do not fit: {error}") from error
