"""Makes the pipeline that ships with the package from an export of stage 2 and its evaluation.

    python -m eval.arms.ship --model EXPORT --results OUT/results.json \
        --out makeup_plugin/weights/tiny/pipeline --notes "How it was trained …"

Weights are stored in 16 bits, towers that ship already are left out, and the model card contains the evaluation's
figures.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eval.arguments import check_export
from eval.arms.page import MAIN
from eval.hashes import model_hash
from faceclip.errors import CheckpointError, DataError
from faceclip.settings import run, setting
from faceclip.storage.folders import write_atomically
from faceclip.storage.loading import check_finite
from faceclip.storage.regular import read_settings
from faceclip.storage.tensors import STEM
from makeup_plugin.saving.adapters import CONFIG_FILE, hide_local_path, read_adapter_config
from makeup_plugin.saving.index import INDEX_FILE
from makeup_plugin.saving.shipped import ENCODER_TOWERS, SHIPPED, WHOLE_TOWERS, tower_weights

(NAME,) = SHIPPED


@dataclass(kw_only=True)
class ShipSettings:
    """Settings of the command."""

    model: Path = setting(help="pipeline folder (export of train_generator)")
    results: Path = setting(help="results.json of `python -m eval.arms` on this model")
    out: Path = setting(help="folder of the shipped pipeline, which must not exist")
    notes: str = setting(help="sentences at the end of the model card: commands, data and length of the training")


def ship(settings: ShipSettings) -> None:
    """Writes the shipped folder atomically and prints its size.

    Raises CheckpointError if `out` exists, or if the model lacks a part, has a LoRA, or has other towers than those
    that ship, and DataError if the results belong to another model or split.
    """
    check_export("--model", settings.model, INDEX_FILE, "the export folder of `python -m train_generator`")
    if settings.out.exists():
        raise CheckpointError(f"--out {settings.out} exists: remove it, or name another folder")
    if absent := [part for part in WHOLE_TOWERS if not (settings.model / part).is_dir()]:
        raise CheckpointError(f"--model {settings.model} lacks {absent[0]}: ship one with image tower and fitter")
    if read_adapter_config(settings.model)["lora"]:
        raise CheckpointError(f"--model {settings.model} has a LoRA: ship one that was trained with adapter.unet=full")
    if strange := [file for file in settings.model.rglob("*.safetensors") if file.name != f"{STEM}.safetensors"]:
        raise CheckpointError(f"--model holds {strange[0]}: ship a pipeline that was saved in one file a component")
    results = _read_results(settings.results, settings.model)
    write_atomically(settings.out, lambda folder: _write(settings, results, folder))
    size = sum(path.stat().st_size for path in settings.out.rglob("*") if path.is_file())
    print(f"{settings.out}: {size / 1e6:.1f} MB")


def card(results: Mapping[str, Any], notes: str) -> str:
    """Returns the model card (Markdown). results: content of results.json. notes: its last sentences."""
    rows = {**results["arms"], **results["real"]}
    lines = [
        "---",
        "license: apache-2.0",
        "tags: [synthetic-faces, tiny]",
        "---",
        "# The tiny Face-MakeUp pipeline",
        "",
        "It draws renders of synthetic people, from a reference portrait and a prompt, and nothing else. It knows no "
        "photographed person. Licence: Apache-2.0 (code and weights); all training pictures were rendered from CC0 "
        "head geometry.",
        "",
        '`FaceMakeUpPipeline.from_pretrained("tiny")` loads it. Parts that ship with the package `faceclip` anyway '
        "(recognizer, text towers, image tower, fitter) are read from there, so that only the name loads it: "
        "`save_pretrained` of the loaded pipeline writes a whole folder.",
        "",
        f"People that no training saw, {results['settings']['images per arm']:,} pictures per arm, 95 % intervals by "
        "identity, measured by `python -m eval.arms --model EXPORT --data DIR --out DIR` before 16 bits:",
        "",
        "| arm | " + " | ".join([*MAIN, "Fréchet distance"]) + " |",
        "|" + "---|" * (len(MAIN) + 2),
    ]
    for arm, figures in rows.items():
        cells = [_cell(figures.get(name)) for name in MAIN]
        lines.append(f"| {arm} | " + " | ".join([*cells, f"{results['frechet distance'][arm]:.0f}"]) + " |")
    return "\n".join([*lines, "", notes]) + "\n"


def _write(settings: ShipSettings, results: Mapping[str, Any], folder: Path) -> None:
    """Fills the shipped folder."""
    for part in sorted(path for path in settings.model.iterdir() if path.is_dir()):
        if part.name in WHOLE_TOWERS:
            _check_tower(_read(part), WHOLE_TOWERS[part.name], part)
            continue
        copied = folder / part.name
        shutil.copytree(part, copied, ignore=shutil.ignore_patterns("*.safetensors", "README.md", "metrics.json"))
        if (part / f"{STEM}.safetensors").is_file():
            tensors = _read(part)
            if part.name == "joint_encoder":
                tensors = _without_towers(tensors, part)
            save_file(tensors, copied / f"{STEM}.safetensors")
    shutil.copyfile(settings.model / INDEX_FILE, folder / INDEX_FILE)
    adapter = read_settings(settings.model / CONFIG_FILE) | {"base_model": NAME}  # its base ships in this folder
    (folder / CONFIG_FILE).write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in (folder / INDEX_FILE, *folder.glob("*/config.json"), *folder.glob("*/scheduler_config.json")):
        hide_local_path(path)
    figures = {name: results[name] for name in ("arms", "real", "frechet distance", "settings")}
    (folder / "metrics.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(results, settings.notes), encoding="utf-8")


def _read(part: Path) -> dict[str, Tensor]:
    """Reads a component's tensors, with floating point in 16 bits. Raises CheckpointError if a value overflows."""
    found = load_file(part / f"{STEM}.safetensors")
    halved = {name: value.half() if value.is_floating_point() else value for name, value in found.items()}
    check_finite(halved, part)
    return {name: value.contiguous() for name, value in halved.items()}


def _without_towers(tensors: Mapping[str, Tensor], part: Path) -> dict[str, Tensor]:
    """Returns a joint encoder's tensors without its towers. Raises CheckpointError if these are not the shipped
    ones."""
    for prefix, tower in ENCODER_TOWERS.items():
        mine = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        _check_tower(mine, tower, part)
    return {key: value for key, value in tensors.items() if not key.startswith(tuple(ENCODER_TOWERS))}


def _check_tower(mine: Mapping[str, Tensor], tower: str, part: Path) -> None:
    """Raises CheckpointError unless the tensors are those of the shipped tower."""
    shipped = tower_weights(NAME, tower)
    different = sorted(mine.keys() ^ shipped.keys())
    different += [key for key in mine if key in shipped and not torch.equal(mine[key], shipped[key])]
    if different:
        raise CheckpointError(
            f"{part}: {different[0]} differs from that of the shipped {NAME}/{tower}: ship a model that was trained "
            "with the shipped towers"
        )


def _read_results(path: Path, model: Path) -> dict[str, Any]:
    """Reads the evaluation's results. Raises DataError if they are damaged, of another model, or not of the test
    split."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        card(found, "")  # reads all that the card needs
        settings = found["settings"]
        measured, split = settings.get("model"), settings.get("split")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"--results {path} cannot be read ({error!r}): give that of `python -m eval.arms`") from error
    if measured != model_hash(model) or split != "test":
        raise DataError(
            f"--results {path} are those of another model or split: run `python -m eval.arms --model {model}` on the "
            "split test"
        )
    return found


def _cell(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


main = partial(run, ship, ShipSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
