"""What the commands of this folder share: configure, train, export, measure on the test split, write the card."""

import copy
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from faceclip.errors import ConfigError
from faceclip.runtime import MapSource, Task, Trainer, TrainerConfig, parse_config
from train_encoder.towers.card import Card, Metric, dataset_facts, write_card

PRESETS = Path(__file__).parent / "presets"


@dataclass(kw_only=True)
class TowerConfig:
    """Common fields: `data` is a data set directory, `out` receives the run, `export` the finished tower."""

    data: str = ""
    out: str = "runs/towers/tower"
    export: str = ""  # empty: the folder `export` below `out`
    size: int = 64  # side of the portraits in pixels
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def run_tower(
    config_class: type[TowerConfig],
    argv: list[str] | None,
    *,
    name: str,
    build: Callable[[Any], tuple[Task, MapSource]],
    measure: Callable[[Path, Any], Mapping[str, Metric]],
    title: str,
    summary: str,
    notes: str = "",
) -> Mapping[str, Metric]:
    """Train a tower and leave it with its card in the export directory; returns the measured figures."""
    argv = sys.argv[1:] if argv is None else argv
    config = parse_config(config_class, argv, presets=PRESETS / name)
    if not config.data:
        raise ConfigError("data: name the data set directory, as in data=DIR")
    facts = dataset_facts(Path(config.data))
    torch.manual_seed(config.trainer.seed)
    task, source = build(config)
    result = Trainer(config.trainer, task, source, Path(config.out)).fit()
    export = Path(config.export or result.export)
    if export != result.export:
        # The trainer's export holds the averaged weights; the task itself holds the last ones.
        shutil.copytree(result.export, export, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
    metrics = measure(export, config)
    local = ("data=", "out=", "export=", "vae=", "judge=", "text_l=", "text_g=")
    rest = ["init=DIR" if argument.startswith("init=") else argument for argument in argv
            if not argument.startswith(local)]  # fmt: skip
    card = Card(
        title=title,
        summary=summary,
        command=" ".join([f"python -m train_generator.towers.{name}", "data=DIR", *rest]),
        seed=config.trainer.seed,
        steps=config.trainer.steps,
        samples=config.trainer.steps * config.trainer.batch_size * config.trainer.accumulate,
        data=facts,
        notes=notes,
    )
    write_card(export, card, metrics)
    for key, metric in metrics.items():
        print(f"{key}: {metric}")
    print(f"exported to {export}")
    return metrics


def save_half(model: nn.Module, directory: Path) -> None:
    """`save_pretrained` with 16-bit weights, which load as fp32 again; the model itself stays as it is."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(directory)
    # diffusers writes the local folder that a model came from into its configuration.
    path = Path(directory) / "config.json"
    stored = json.loads(path.read_text())
    stored.pop("_name_or_path", None)
    path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
