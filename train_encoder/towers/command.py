"""What every tower command does: configure, train, export, measure on the test split, write the card."""

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from faceclip.errors import ConfigError
from faceclip.runtime import MapSource, Task, Trainer, TrainerConfig, parse_config
from faceclip.runtime.checkpoints import MANIFEST
from train_encoder.towers.card import Card, Metric, dataset_facts, write_card

PRESETS = Path(__file__).parent / "presets"


@dataclass(kw_only=True)
class TowerConfig:
    """Common fields: `data` is a data set directory, `out` receives the run, `export` the finished tower.

    `half`: store the exported weights in 16 bits; the figures of the card are measured on what is stored.
    """

    data: str = ""
    out: str = "runs/towers/tower"
    export: str = ""  # empty: the folder `export` below `out`
    half: bool = True
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def run_tower(
    config_class: type[TowerConfig],
    argv: list[str] | None,
    *,
    name: str,
    build: Callable[[Any], tuple[Task, MapSource]],
    measure: Callable[[Path, Path], Mapping[str, Metric]],
    title: str,
    summary: str,
    notes: str = "",
    parts: tuple[str, ...] = (),
) -> Mapping[str, Metric]:
    """Train a tower and leave it with its card in the export directory; returns the measured figures.

    `parts`: subfolders of the export that each get the card. `build` makes task and source from the
    configuration, `measure` reads the exported directory and the data set.
    """
    argv = sys.argv[1:] if argv is None else argv
    config = parse_config(config_class, argv, presets=PRESETS / name)
    if not config.data:
        raise ConfigError("data: name the data set directory, as in data=DIR")
    facts = dataset_facts(Path(config.data))
    torch.manual_seed(config.trainer.seed)
    task, source = build(config)
    export = Trainer(config.trainer, task, source, Path(config.out)).fit().export
    if config.export:
        export = Path(shutil.copytree(export, config.export, dirs_exist_ok=True))
    (export / MANIFEST).unlink(missing_ok=True)
    if config.half:
        halve(export)
    metrics = measure(export, Path(config.data))
    trainer = config.trainer
    card = Card(
        title=title,
        summary=summary,
        command=_command(name, argv),
        seed=trainer.seed,
        steps=trainer.steps,
        samples=trainer.steps * trainer.batch_size * trainer.accumulate,
        data=facts,
        notes=notes,
    )
    for folder in [export / part for part in parts] or [export]:
        write_card(folder, card, metrics)
    for key, metric in metrics.items():
        print(f"{key}: {metric}")
    print(f"exported to {export}")
    return metrics


def halve(directory: Path) -> None:
    """Rewrite every safetensors file below `directory` with its fp32 tensors in fp16.

    Raises ValueError when a value does not fit fp16.
    """
    for file in directory.rglob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        for name, tensor in tensors.items():
            if tensor.dtype == torch.float32:
                tensors[name] = tensor.half()
                if not torch.isfinite(tensors[name]).all():
                    raise ValueError(f"{file}: {name} does not fit 16 bits; export with half=false")
        save_file(tensors, file, metadata={"format": "pt"})


def _command(name: str, argv: list[str]) -> str:
    """The command as a reader would type it: places on this machine are left out."""
    local = ("data=", "out=", "export=")
    rest = [argument for argument in argv if not argument.startswith(local)]
    return " ".join([f"python -m train_encoder.towers.{name}", "data=DIR", *rest])
