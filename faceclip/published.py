"""The published FaceCLIP checkpoint (`face_clip_encoder.pt` of ByteDance/FaceCLIP, CC-BY-NC-4.0) and our layout.

    python -m faceclip.published convert face_clip_encoder.pt OUT
    python -m faceclip.published export DIR face_clip_encoder.pt

Names of the release exist in this module only. What the release stores but never uses (the face half of the last
fusion layer, `enc_output*`, the branches' logit scale and bias) is kept beside our weights, so that exporting gives
the published tensors back bit for bit.
"""

import argparse
import json
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import hf_hub_download, split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, FaceClipError

LICENSE = "CC-BY-NC-4.0"
FILE = "model/face_clip_encoder.pt"
UNUSED = "published_unused.safetensors"
WEIGHTS = "diffusion_pytorch_model.safetensors"
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
_FUSER = re.compile(r"fuser\.encoder\.(layers|text_layers|fusion_layers)\.(\d+)\.(.+)")


def published_names(ours: str) -> tuple[list[str], bool]:
    """Published names of one tensor of ours, and whether it is a third of a stacked `in_proj`.

    The face encoder has two names (each published branch stores its own copy).
    """
    if ours.startswith("face_encoder."):
        return [f"{branch}.{ours}" for branch in BRANCHES.values()], False
    branch, rest = ours.split(".", 1)
    root = BRANCHES[branch]
    if rest.startswith("text.tower."):
        return [f"{root}.{rest.removeprefix('text.tower.')}"], False
    for theirs, mine in _PROJECTIONS.items():
        if rest.startswith(mine + "."):
            return [f"{root}.{theirs}{rest[len(mine) :]}"], False
    _, _, layer, block, name = rest.split(".", 4)
    table, folder = {"face": (_DEFORMABLE, "layers"), "text": (_TEXT, "text_layers"),
                     "cross": (_CROSS, "fusion_layers")}[block]  # fmt: skip
    prefix = f"{root}.fuser.encoder.{folder}.{layer}."
    stem, _, kind = name.partition(".")
    if block == "text" and stem in ("query", "key", "value"):
        return [f"{prefix}self_attn.in_proj_{kind}"], True
    theirs = next(theirs for theirs, mine in table.items() if mine == stem)
    return [prefix + theirs + (f".{kind}" if kind else "")], False


def to_published(state: Mapping[str, Tensor], unused: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors of our state and of the unused ones, bit for bit."""
    out: dict[str, Tensor] = dict(unused)
    stacks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        theirs, stacked = published_names(name)
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
    """(our state, unused published tensors); tensors are views of the given ones.

    Args:
        published: with or without `model.` in the names. model: of the right configuration, may be on `meta`.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen keys, or face encoders that differ.
    """
    given = {name.replace("model.", ""): tensor for name, tensor in published.items()}
    layers = len(model.l.fusion.layers)
    expected, sources = {}, {}
    for name, tensor in model.state_dict().items():
        theirs, stacked = published_names(name)
        for key in theirs:
            shape = tuple(tensor.shape)
            expected[key] = (3 * shape[0], *shape[1:]) if stacked else shape
        sources[name] = (theirs, stacked)
    dead = {name for name in given if name not in expected and _is_unused(name, layers)}
    _check(given, expected, dead, where)
    state = {}
    for name, (theirs, stacked) in sources.items():
        tensor = given[theirs[0]]
        if stacked:
            part = ("query", "key", "value").index(name.split(".")[5])
            tensor = tensor[part * len(tensor) // 3 : (part + 1) * len(tensor) // 3]
        elif len(theirs) == 2 and not torch.equal(tensor, given[theirs[1]]):
            raise CheckpointError(f"{where}: {theirs[0]} and {theirs[1]} differ; one face encoder must serve both")
        state[name] = tensor
    return state, {name: given[name] for name in sorted(dead)}


def _is_unused(name: str, layers: int) -> bool:
    root, _, rest = name.partition(".")
    if root not in BRANCHES.values():
        return False
    if rest in ("logit_scale", "logit_bias") or rest.startswith("fuser.enc_output"):
        return True
    match = _FUSER.fullmatch(rest)
    if match is None or int(match[2]) != layers - 1:
        return False
    return match[1] == "layers" or (match[1] == "fusion_layers" and match[3].startswith(_FACE_HALF))


def _check(given: Mapping[str, Tensor], expected: Mapping[str, tuple], dead: set[str], where: str) -> None:
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys() - dead)
    misshapen = [f"{name} is {tuple(given[name].shape)}, expected {shape}" for name, shape in expected.items()
                 if name in given and tuple(given[name].shape) != shape]  # fmt: skip
    problems = [f"{len(names)} {title}: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
                for title, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
                if names]  # fmt: skip
    if problems:
        raise CheckpointError(f"{where} is not a FaceCLIP checkpoint of this configuration; " + "; ".join(problems))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.pt` file, memory-mapped, without running any code in it.

    Raises:
        CheckpointError: missing or truncated file, pickle that holds more than tensors, or no state dictionary.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than tensors and is refused (weights_only): {error}") from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read, it may be truncated ({error}): download it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds {type(found).__name__}, not a dictionary of tensors")
    return found


def load_faceclip(
    path_or_hub_id: str | Path, *, dtype: torch.dtype | None = None, config: dict | None = None
) -> FaceCLIP:
    """FaceCLIP with the published weights, in evaluation mode; licence CC-BY-NC-4.0.

    Args:
        path_or_hub_id: `face_clip_encoder.pt`, a directory made by `convert`, or a hub id (`ByteDance/FaceCLIP`).
        dtype: of the weights (None: as stored, 16 bits). config: of another size than the release.

    Raises:
        CheckpointError: as `read_checkpoint` and `from_published` do.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return FaceCLIP.from_pretrained(path, torch_dtype=dtype)
    if not path.is_file() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_hub_id)):
        path = Path(hf_hub_download(str(path_or_hub_id), FILE))
    with init_empty_weights():
        model = FaceCLIP(**(config or CONFIG))
    state, _ = from_published(read_checkpoint(path), model, str(path))
    model.load_state_dict(state, strict=True, assign=True)
    return model.to(dtype).eval() if dtype is not None else model.eval()


def convert(source: Path, target: Path, *, config: dict | None = None, shard_size: str = "1GB") -> None:
    """Writes our directory (sharded safetensors, dtypes kept, one face encoder) from a published file."""
    with init_empty_weights():
        model = FaceCLIP(**(config or CONFIG))
    state, unused = from_published(read_checkpoint(source), model, str(source))
    target.mkdir(parents=True, exist_ok=True)
    model.save_config(target)
    plan = split_torch_state_dict_into_shards(
        state, max_shard_size=shard_size, filename_pattern=WEIGHTS.replace(".safetensors", "{suffix}.safetensors")
    )
    for file, names in plan.filename_to_tensors.items():
        shard = {name: state[name].contiguous() for name in names}
        save_file(shard, target / file, {"format": "pt", "license": LICENSE})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (target / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=1))
    save_file({name: tensor.contiguous() for name, tensor in unused.items()}, target / UNUSED, {"license": LICENSE})


def export(source: Path, target: Path) -> None:
    """Writes the published layout of a converted directory, bit for bit.

    Raises:
        CheckpointError: the directory was not made by `convert`.
    """
    if not (source / UNUSED).is_file():
        raise CheckpointError(f"{source} has no {UNUSED}: only a directory made by `convert` can be exported")
    state: dict[str, Tensor] = {}
    for file in sorted(source.glob("diffusion_pytorch_model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            state |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    with safe_open(source / UNUSED, framework="pt") as tensors:
        unused = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    torch.save(to_published(state, unused), target)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("convert", "export"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args(argv)
    try:
        {"convert": convert, "export": export}[arguments.action](arguments.source, arguments.target)
    except FaceClipError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.target} written. The published FaceCLIP weights are licensed {LICENSE}: no commercial use.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
