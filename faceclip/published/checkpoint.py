"""The published FaceCLIP checkpoint (`face_clip_encoder.pt` of ByteDance/FaceCLIP, CC-BY-NC-4.0) and our layout.

Names of the release exist in this module only. The tensors that the release stores and never uses (the face half of the
last fusion layer, `enc_output*`, the branches' logit scale and bias) are kept beside our weights, so that exporting
returns the published tensors bit for bit.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError
from faceclip.published.files import (
    LICENSE,
    check_archive,
    check_keys,
    empty_model,
    mention_license,
    read_checkpoint,
    read_directory,
    resolve,
    write_checkpoint,
    writing,
)
from faceclip.published.unet import UNET_FILE, load_unet
from faceclip.storage.loading import check_finite
from faceclip.storage.regular import read_settings

__all__ = ["CONFIG", "LICENSE", "convert", "export", "load_faceclip", "load_unet", "read_checkpoint"]

FILE = "model/face_clip_encoder.pt"
UNUSED = "published_unused.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SHARDS = "diffusion_pytorch_model*.safetensors"
WHAT = "FaceCLIP checkpoint of this configuration"
CONFIG: dict[str, Any] = {
    "face": {"image_size": 112, "patch_size": 9, "width": 768, "depth": 24, "heads": 8, "embedding_dim": 512},
    "text_l": {"width": 768, "layers": 12, "heads": 12, "quick_gelu": True, "embed_dim": 768},
    "text_g": {"width": 1280, "layers": 32, "heads": 20, "quick_gelu": False, "embed_dim": 1280},
    "fusion": {"layers": 6},
    "joint": None,
}
BRANCHES = {"l": "face_clip_l", "g": "face_clip_g"}

_PROJECTIONS = {
    "proj1": "identity_projection",
    "face_patch_proj": "face_projection",
    "face_pos_proj": "face_position_projection",
    "text_embed_proj": "text_projection",
    "text_pos_proj": "text_position_projection",
}
_DEFORMABLE = {
    "self_attn.sampling_offsets": "offsets",
    "self_attn.attention_weights": "weights",
    "self_attn.value_proj": "value",
    "self_attn.output_proj": "out",
    "norm1": "attention_norm",
    "linear1": "up",
    "linear2": "down",
    "norm2": "output_norm",
}
_TEXT = {
    "self_attn.out_proj": "out",
    "norm1": "attention_norm",
    "linear1": "up",
    "linear2": "down",
    "norm2": "output_norm",
}
_CROSS = {
    "gamma_v": "face_scale",
    "gamma_l": "text_scale",
    "layer_norm_v": "face_norm",
    "layer_norm_l": "text_norm",
    "attn.v_proj": "face_query",
    "attn.l_proj": "text_key",
    "attn.values_v_proj": "face_value",
    "attn.values_l_proj": "text_value",
    "attn.out_v_proj": "face_out",
    "attn.out_l_proj": "text_out",
}
_FACE_HALF = ("gamma_v", "attn.values_l_proj", "attn.out_v_proj")  # of the last layer: computes an unused output
_PARTIAL = (
    "; of what is never computed (enc_output*, the face half of the last fusion layer, logit_scale, logit_bias) a file "
    "holds all of a branch or nothing: take the file as it was published"
)
_UNUSED_OUTPUT = ("enc_output.bias", "enc_output_norm.weight", "enc_output_norm.bias")
_FUSER = re.compile(r"fuser\.encoder\.(layers|text_layers|fusion_layers)\.(\d+)\.(.+)")


def published_names(ours: str, *, shared_face: bool = True) -> tuple[list[str], bool]:
    """Returns published names of one tensor of ours, and whether it is a third of a stacked `in_proj`.

    A shared face encoder has two names (each published branch stores its own copy).
    """
    if ours.startswith("face_encoder."):
        return [f"{branch}.{ours}" for branch in BRANCHES.values()][: 1 + shared_face], False
    if ours.startswith("face_encoder_g."):
        return [f"{BRANCHES['g']}.{ours.replace('_g.', '.', 1)}"], False
    branch, rest = ours.split(".", 1)
    root = BRANCHES[branch]
    if rest.startswith("text.tower."):
        return [f"{root}.{rest.removeprefix('text.tower.')}"], False
    for theirs, mine in _PROJECTIONS.items():
        if rest.startswith(mine + "."):
            return [f"{root}.{theirs}{rest[len(mine) :]}"], False
    _, _, layer, block, name = rest.split(".", 4)
    table, folder = {
        "face": (_DEFORMABLE, "layers"),
        "text": (_TEXT, "text_layers"),
        "cross": (_CROSS, "fusion_layers"),
    }[block]
    prefix = f"{root}.fuser.encoder.{folder}.{layer}."
    stem, _, kind = name.partition(".")
    if block == "text" and stem in ("query", "key", "value"):
        return [f"{prefix}self_attn.in_proj_{kind}"], True
    theirs = next(theirs for theirs, mine in table.items() if mine == stem)
    return [prefix + theirs + (f".{kind}" if kind else "")], False


def to_published(state: Mapping[str, Tensor], unused: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the published tensors of our state and of the unused ones, bit for bit."""
    out: dict[str, Tensor] = dict(unused)
    stacks: dict[str, dict[str, Tensor]] = {}
    shared = not any(name.startswith("face_encoder_g.") for name in state)
    for name, tensor in state.items():
        theirs, stacked = published_names(name, shared_face=shared)
        if stacked:
            stacks.setdefault(theirs[0], {})[name.split(".")[5]] = tensor
        else:
            out.update(dict.fromkeys(theirs, tensor))
    for name, parts in stacks.items():
        out[name] = torch.cat([parts[part] for part in ("query", "key", "value")])
    return out


def from_published(
    published: Mapping[str, Tensor], model: FaceCLIP, where: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns (our state, unused published tensors); tensors are views of the given ones.

    Args:
        published: with or without `model.` in the names. model: of the right configuration, may be on `meta`.

    Raises:
        CheckpointError: listing missing, unexpected, misshapen and mistyped keys (all their names are attributes of the
            error), or face encoders that differ where `model` shares one. Of the tensors that are never computed each
            branch must have all, or none.
    """
    given = _plain_names(published)
    if len(given) != len(published):
        raise CheckpointError(f"{where} holds tensors twice, with and without `model.` in the name")
    layers = len(model.l.fusion.layers)
    expected, sources, counters = {}, {}, set()
    for name, tensor in model.state_dict().items():
        theirs, stacked = published_names(name, shared_face=model.config.shared_face)
        for key in theirs:
            shape = tuple(tensor.shape)
            expected[key] = (3 * shape[0], *shape[1:]) if stacked else shape
            if not tensor.is_floating_point():
                counters.add(key)
        sources[name] = (theirs, stacked)
    unused = _unused_shapes(expected, layers)
    holders = {name.partition(".")[0] for name in given if name in unused}
    dead = {name: shape for name, shape in unused.items() if name.partition(".")[0] in holders}
    missing = (expected | dead).keys() - given.keys()
    advice = _PARTIAL if missing <= unused.keys() and missing else ""
    check_keys(given, expected | dead, where, WHAT, counters=counters, advice=advice)
    state = {}
    for name, (theirs, stacked) in sources.items():
        tensor = given[theirs[0]]
        if stacked:
            part = ("query", "key", "value").index(name.split(".")[5])
            tensor = tensor[part * len(tensor) // 3 : (part + 1) * len(tensor) // 3]
        elif len(theirs) == 2 and not _same_bits(tensor, given[theirs[1]]):
            raise CheckpointError(
                f"{where}: {theirs[0]} and {theirs[1]} differ, and the given model has one face encoder for both "
                "branches: give one of shared_face=False"
            )
        state[name] = tensor
    return state, {name: given[name] for name in sorted(dead)}


def _plain_names(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("model.", ""): tensor for name, tensor in published.items()}


def _empty_model_for(published: Mapping[str, Tensor], config: dict[str, Any] | None) -> FaceCLIP:
    """Returns a model without storage, with one face encoder where both branches' copies are equal.

    This function does not check whether the tensors fit the model.
    """
    given = _plain_names(published)
    pairs = [
        (tensor, given.get(name.replace(BRANCHES["l"], BRANCHES["g"], 1)))
        for name, tensor in given.items()
        if name.startswith(f"{BRANCHES['l']}.face_encoder.")
    ]
    equal = all(_same_bits(left, right) for left, right in pairs if right is not None and left.shape == right.shape)
    return empty_model(FaceCLIP, {"shared_face": equal, "licence": LICENSE, **(config or CONFIG)})


def _same_bits(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype:
        return False
    first, second = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (first, second))
    return torch.equal(first, second)  # as numbers NaN would differ from itself


def _unused_shapes(expected: Mapping[str, tuple], layers: int) -> dict[str, tuple]:
    """Returns names and shapes of the tensors that a file of the release may hold and that are never computed.

    The face half of the last fusion layer has the same shapes as that of the layer before.
    """
    out: dict[str, tuple] = {}
    for root in BRANCHES.values():
        width = expected[f"{root}.proj1.bias"]
        out |= {f"{root}.logit_scale": (), f"{root}.logit_bias": ()}
        out |= {f"{root}.fuser.enc_output.weight": width * 2}
        out |= dict.fromkeys((f"{root}.fuser.{name}" for name in _UNUSED_OUTPUT), width)
    for name, shape in expected.items():
        match = _FUSER.fullmatch(name.partition(".")[2])
        if match is None or int(match[2]) != layers - 2:
            continue
        if match[1] == "layers" or (match[1] == "fusion_layers" and match[3].startswith(_FACE_HALF)):
            out[name.replace(f".{match[1]}.{match[2]}.", f".{match[1]}.{layers - 1}.")] = shape
    return out


def load_faceclip(
    path_or_hub_id: str | Path,
    *,
    dtype: torch.dtype | None = None,
    fusion_dtype: torch.dtype | None = None,
    config: dict[str, Any] | None = None,
) -> FaceCLIP:
    """Loads FaceCLIP with the published weights or those of an export of stage 1, in evaluation mode.

    The published licence, CC-BY-NC-4.0, is logged once and stands in `config.licence`.

    Args:
        path_or_hub_id: `face_clip_encoder.pt`, a directory made by `convert` or by `FaceCLIP.save_pretrained` (or
            with a copy of the repository), or a hub id (`ByteDance/FaceCLIP`).
        dtype: dtype of the towers. None keeps the stored one, 16 bits.
        fusion_dtype: dtype of fusion, projections and heads. None means float32 beside towers of 16 bits, as the
            release runs: in bfloat16 the fusion's rounding would change the tokens as much as another prompt does. It
            means the towers' dtype otherwise.
        config: configuration of a file whose size differs from the release. For a directory, the configuration that it
            must have.

    Raises:
        CheckpointError: as `read_checkpoint` and `from_published` do, or a directory that is damaged, of another
            configuration, or not ours; a tensor holds NaN or infinity. Other damage inside the tensors of a `.pt` file
            is not noticed here: `convert` does.
        ConfigError: `config` describes no FaceCLIP, or no path is given.
    """
    path = resolve(path_or_hub_id, FILE)
    if path.is_dir():
        model, state, metadata = _read_directory(path, config)
        check_finite(state, path)
        model.load_state_dict(state, strict=True, assign=True)
        if metadata.get("license") == LICENSE:  # a directory that was converted before its configuration said so
            model.register_to_config(licence=LICENSE)
        if model.config.licence == LICENSE:
            mention_license(str(path))
    else:
        tensors = read_checkpoint(path)
        model = _empty_model_for(tensors, config)
        state, _ = from_published(tensors, model, str(path))
        check_finite(tensors, path)
        model.load_state_dict(state, strict=True, assign=True)
        mention_license(str(path))
    set_dtypes(model, dtype, fusion_dtype)
    return model.eval()


def set_dtypes(model: FaceCLIP, dtype: torch.dtype | None, fusion_dtype: torch.dtype | None) -> None:
    """Casts the towers to `dtype` and all other parts to `fusion_dtype`; None as in `load_faceclip`."""
    for tower in model.towers() if dtype is not None else ():
        # Not by ModelMixin.to: diffusers 0.42 then warns of float32 modules even of models that have none.
        nn.Module.to(tower, dtype)
    if fusion_dtype is None:
        fusion_dtype = torch.float32 if model.l.text.dtype in (torch.float16, torch.bfloat16) else model.l.text.dtype
    for branch in model.branches:
        for name, part in branch.named_children():
            if name != "text":
                part.to(fusion_dtype)
    if model.heads is not None:
        model.heads.to(fusion_dtype)


def _read_directory(
    path: Path, config: dict[str, Any] | None = None
) -> tuple[FaceCLIP, dict[str, Tensor], dict[str, str]]:
    """Returns (empty model of the directory's configuration, its whole state, metadata)."""
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is a directory without config.json and without {FILE}: give the checkpoint "
            "file, a directory made by `convert`, or an export"
        )
    found = read_settings(path / "config.json")
    settings = {name: value for name, value in found.items() if not name.startswith("_")}
    if found.get("_class_name", "FaceCLIP") != "FaceCLIP" or not settings.keys() >= {"face", "text_l", "text_g"}:
        raise CheckpointError(f"{path} holds a {found.get('_class_name', 'model')}, not a FaceCLIP")
    differing = [
        f"{name} is {settings.get(name)}, expected {value}"
        for name, value in (config or {}).items()
        if settings.get(name) != value
    ]
    if differing:
        raise CheckpointError(f"{path} has another configuration: {'; '.join(differing)}")
    state, metadata = read_directory(path, SHARDS)
    try:
        model = empty_model(FaceCLIP, settings)
    except ConfigError as error:
        raise CheckpointError(f"{path / 'config.json'} is of no use ({error}): write it again") from error
    own = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    counters = {name for name, tensor in own.items() if not tensor.is_floating_point()}
    check_keys(state, shapes, str(path), WHAT, counters=counters)
    return model, state, metadata


def convert(source: Path, target: Path, *, config: dict[str, Any] | None = None, shard_size: str = "1GB") -> None:
    """Writes a directory of ours (sharded safetensors, dtypes kept) from a published file.

    The face encoder is stored once if both copies are equal.

    Raises:
        CheckpointError: as `check_archive`, `read_checkpoint` and `from_published` do, or a target that is not an empty
            directory or cannot be written.
    """
    empty_model(FaceCLIP, config or CONFIG)  # a wrong configuration is rejected before gigabytes are read
    check_archive(source)
    tensors = read_checkpoint(source)
    model = _empty_model_for(tensors, config)
    state, unused = from_published(tensors, model, str(source))
    _make_empty(target)
    plan = split_torch_state_dict_into_shards(
        state, max_shard_size=shard_size, filename_pattern=WEIGHTS.replace(".safetensors", "{suffix}.safetensors")
    )
    with writing(target):
        for file, names in plan.filename_to_tensors.items():
            shard = {name: state[name].contiguous() for name in names}
            save_file(shard, target / file, {"format": "pt", "license": LICENSE})
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (target / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=1))
        save_file({name: tensor.contiguous() for name, tensor in unused.items()}, target / UNUSED, {"license": LICENSE})
        model.save_config(target)  # last: a directory with a configuration is complete


def _make_empty(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not an empty directory: name a new one")
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)


def export(source: Path, target: Path) -> None:
    """Writes the published layout of a converted directory, bit for bit and atomically.

    Raises:
        CheckpointError: the directory was not made by `convert`, is incomplete or damaged, or the target is a directory
            or cannot be written.
    """
    if target.is_dir():
        raise CheckpointError(f"{target} is a directory where the name of a file to write is expected")
    unused, _ = read_directory(source, UNUSED)
    model, state, _ = _read_directory(source)
    published = to_published(state, unused)
    from_published(published, model, str(source))  # the unused tensors, too, are those of the release
    write_checkpoint(published, target)


def convert_unet(source: Path, target: Path) -> None:
    """Writes the release's `unet.pt` as a folder that `UNet2DConditionModel.from_pretrained` loads.

    Raises:
        CheckpointError: no such file, a damaged one, one of another model, or a target that is not empty.
    """
    source = resolve(source, UNET_FILE)
    check_archive(source)
    unet = load_unet(source)
    _make_empty(target)
    with writing(target):
        unet.save_pretrained(target)
