"""Trained pipelines that ship with the package, by name.

The frozen towers that stage 1 and stage 2 start from ship with `faceclip`. A shipped pipeline leaves them out of its
own files and reads them from there, so that no weight is stored twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from faceclip import weights
from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.loading import DAMAGE, building, check_finite, compare, load_strictly
from faceclip.storage.regular import read_settings
from faceclip.storage.tensors import STEM
from makeup_plugin.saving.clip_parts import dtype_of
from makeup_plugin.saving.quantized import named_components

SHIPPED = ("tiny",)  # names that `from_pretrained` takes beside directories and hub ids
# Within the joint encoder's weights, by the beginning of their names, and whole parts: which towers they are.
ENCODER_TOWERS = {"face_encoder.": "recognizer", "l.text.": "text_tower_l", "g.text.": "text_tower_g"}
WHOLE_TOWERS = {"image_encoder": "image_tower", "face_fitter": "fitter"}


def is_shipped(name: str | Path) -> bool:
    """Whether `name` stands for a shipped pipeline: a directory of that name comes first."""
    return str(name) in SHIPPED and not Path(name).is_dir()


def shipped_pipeline(name: str) -> Path:
    """Directory of the shipped pipeline `name`, one of `SHIPPED`.

    Raises CheckpointError, which says how to train one, where this installation has none.
    """
    try:
        return weights.path(f"{name}/pipeline", package="makeup_plugin")
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}: this installation ships the frozen towers and no trained pipeline; train one with"
            " `python -m eval.demo --out runs/demo` (about a quarter of an hour on two cores), and name its folder"
            f" runs/demo/generator/export in place of {name}"
        ) from error


def tower_weights(name: str, tower: str) -> dict[str, Tensor]:
    """Tensors of the shipped tower that belongs to the pipeline `name`, as stored."""
    return _read(weights.path(f"{name}/{tower}") / f"{STEM}.safetensors")


def shipped_towers(name: str, *, given: dict[str, Any]) -> dict[str, nn.Module]:
    """The parts of the shipped pipeline `name` that its folder does not hold whole: joint encoder, image tower and
    fitter, but for those that are `given`, on the CPU in the `dtype` that is given, or float32.

    Raises CheckpointError, which names the file, for damaged ones, and ConfigError for a device map or a quantization
    that would not reach them.
    """
    if given.get("device_map") is not None or "image_encoder" in named_components(given.get("quantization_config")):
        raise ConfigError(
            f"{name}: joint encoder, image tower and fitter of the shipped pipeline are read from the package, where "
            "device_map= and a quantization of image_encoder do not reach them: load it without, then use .to(device)"
        )
    from faceclip.encoder import FaceCLIP
    from faceclip.face3d.fitter import FaceFitter
    from faceclip.towers.image import ImageTower

    directory = shipped_pipeline(name)
    kinds: dict[str, Any] = {"image_encoder": ImageTower, "face_fitter": FaceFitter}
    parts: dict[str, nn.Module] = {
        part: load_strictly(kinds[part].from_pretrained, kinds[part], weights.path(f"{name}/{tower}"))
        for part, tower in WHOLE_TOWERS.items()
        if part not in given
    }
    if "joint_encoder" not in given:
        parts["joint_encoder"] = _joint_encoder(FaceCLIP, directory / "joint_encoder", name)
    for part, module in parts.items():
        dtype = dtype_of(given, part)
        if isinstance(dtype, torch.dtype):  # diffusers warns of others and takes float32
            nn.Module.to(module, dtype)  # diffusers' own warns of casts, in which no layer here is special
        module.eval()
    return parts


def _joint_encoder(kind: Any, folder: Path, name: str) -> nn.Module:
    """The joint encoder: what was trained of it from its folder, its towers from where they ship."""
    file, remedy = folder / f"{STEM}.safetensors", "install the package again"
    found = _read(file)
    for prefix, tower in ENCODER_TOWERS.items():
        found |= {prefix + key: value for key, value in tower_weights(name, tower).items()}
    with building:
        try:
            model = kind.from_config(read_settings(folder / "config.json"))
        except DAMAGE as error:
            raise CheckpointError(f"{folder}/config.json describes no joint encoder ({error}): {remedy}") from error
    compare(found, model.state_dict(), str(file), "and the shipped towers do not make a joint encoder", remedy)
    check_finite(found, file)
    model.load_state_dict(found)
    return model


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): install the package again") from error
