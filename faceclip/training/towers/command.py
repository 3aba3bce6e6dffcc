"""Runs a tower command: configures, trains, exports, measures on the test split, and writes the card."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from faceclip.errors import CheckpointError, ConfigError, DataError
from faceclip.settings import guarded, setting
from faceclip.settings.config import plain_words
from faceclip.storage.files import replacing
from faceclip.storage.folders import MANIFEST, write_atomically
from faceclip.training import MapSource, Task, Trainer, TrainerConfig, check_output, parse_config
from faceclip.training.command import INTERRUPTED
from faceclip.training.towers.card import Card, Metric, card_data, data_text, dataset_facts, renew_figures, write_card


@dataclass(kw_only=True)
class TowerConfig:
    """Settings that all tower commands share.

    `--measure EXPORT` before the settings trains nothing: it measures a finished export on its card's data set and
    replaces the figures of the card. With `half`, the card's figures are measured on the weights in 16 bits.
    """

    data: str = setting("", "data set directory", resume="free", path=True)
    out: str = setting("runs/towers/tower", "folder of the run", resume="free", path=True)
    export: str = setting("", "folder that receives a copy of the export; '': none", resume="free", path=True)
    half: bool = setting(True, "store the export in 16 bits, with which the card's figures are measured", resume="free")
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What distinguishes one tower command from another.

    package, name: the command is `python -m package.name`, and its presets are in `presets/name` of the package. build:
    returns task and source of a configuration. measure: returns the figures of an export folder. parts: subfolders of
    the export that each receive the card. folders: arguments that name folders of the machine; the card omits them.
    """

    package: str
    name: str
    build: Callable[[Any], tuple[Task, MapSource]]
    measure: Callable[[Path, Any], Mapping[str, Metric]]
    title: str
    summary: str
    notes: str = ""
    parts: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command without arguments, as a user types it."""
        return f"python -m {self.package}.{self.name}"

    @property
    def presets(self) -> Path:
        """The folder of the command's presets."""
        return presets_of(self.package) / self.name


def presets_of(package: str) -> Path:
    """Returns the folder with the presets of a package's tower commands, which has one subfolder for each."""
    return Path(str(resources.files(package))) / "presets"


def run_tower(config_class: type[TowerConfig], argv: list[str] | None = None, **options: Any) -> int:
    """Runs `train_tower`, or after `--measure` `measure_again`, for `Tower(**options)` as a command.

    Prints the figures, or one line for a user's error, and returns the exit status.
    """
    words, tower = sys.argv[1:] if argv is None else list(argv), Tower(**options)

    def work() -> None:
        if words[:1] == ["--measure"]:
            export, metrics = measure_again(config_class, words[1:], tower)
            done = f"figures renewed in {export}"
        else:
            export, metrics = train_tower(config_class, words, tower)
            done = f"exported to {export}"
        for key, metric in metrics.items():
            print(f"{key}: {metric}")
        print(done)

    return guarded(work, interrupted=INTERRUPTED)


def measure_again(config_class: type[TowerConfig], words: list[str], tower: Tower) -> tuple[Path, Mapping[str, Metric]]:
    """Measures a finished export, `words[0]`, and replaces the figures of its cards. The other words are settings.

    Returns the export's folder and the figures. Raises CheckpointError and ConfigError for wrong settings, and
    DataError if the export has no card or `data` is not the data set that the card names.
    """
    if not words or "=" in words[0] or words[0].startswith("-"):
        raise ConfigError("--measure: name an export of this command, as in --measure EXPORT data=DIR")
    export, config = Path(words[0]), _configured(config_class, words[1:], tower)
    return export, renew_cards(_card_folders(export, tower), Path(config.data), lambda: tower.measure(export, config))


def renew_cards(
    folders: Sequence[Path], data: Path, measure: Callable[[], Mapping[str, Metric]]
) -> Mapping[str, Metric]:
    """Writes the figures that `measure` returns into the cards in these folders, and returns them.

    Raises DataError, before anything is measured, if a folder has no card or `data` is not the data set that the card
    names.
    """
    facts = dataset_facts(data)
    for folder in folders:
        if facts != (named := card_data(folder)):
            raise DataError(
                f"data={data} is not the data set that the card in {folder} names: it is {data_text(facts)}; "
                f"the card's is {data_text(named)}"
            )
    metrics = measure()
    for folder in folders:
        renew_figures(folder, metrics)
    return metrics


def _configured(config_class: type[TowerConfig], words: list[str], tower: Tower) -> TowerConfig:
    """Returns the configuration of a command line. Raises ConfigError if it names no data."""
    config = parse_config(config_class, words, presets=tower.presets)
    if not config.data:
        raise ConfigError("data: name the data set directory, as in data=DIR")
    return config


def _card_folders(export: Path, tower: Tower) -> list[Path]:
    return [export / part for part in tower.parts] or [export]


def train_tower(config_class: type[TowerConfig], argv: list[str], tower: Tower) -> tuple[Path, Mapping[str, Metric]]:
    """Trains a tower, exports it with its card, and returns the export's folder and the measured figures.

    Raises ConfigError, DataError and CheckpointError for wrong settings. It also raises ConfigError under a launcher of
    several processes, where some towers' losses would not be those of one large batch.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(
            f"a tower is trained by one process, and the launcher started {processes}: run {tower.command} without it"
        )
    config = _configured(config_class, argv, tower)
    check_output(Path(config.out))
    data = dataset_facts(Path(config.data))
    torch.manual_seed(config.trainer.seed)
    task, source = tower.build(config)
    content = getattr(getattr(source, "arrays", None), "content_hash", None)
    facts = {"data": content[:16]} if content else {}
    export = Trainer(config.trainer, task, source, Path(config.out), facts=facts, settings=config).fit().export
    trainer = config.trainer
    card = Card(
        title=tower.title,
        summary=tower.summary,
        command=_command(tower, plain_words(config_class, argv)),
        seed=trainer.seed,
        steps=trainer.steps,
        samples=trainer.steps * trainer.batch_size * trainer.accumulate,
        data=data,
        notes=tower.notes,
    )
    metrics = _finish(export, config, tower, card)
    if config.export:
        copy_export(export, Path(config.export))
        export = Path(config.export)
    return export, metrics


def _finish(export: Path, config: TowerConfig, tower: Tower, card: Card) -> Mapping[str, Metric]:
    """Copies the export, stores the copy in 16 bits, measures it, writes its card, and replaces the export by it."""
    with tempfile.TemporaryDirectory(dir=export.parent, prefix=".measured.", suffix=f".{os.getpid()}.tmp") as name:
        copy = Path(shutil.copytree(export, name, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST)))
        if config.half:
            halve(copy)
        metrics = tower.measure(copy, config)
        for folder in _card_folders(copy, tower):
            write_card(folder, card, metrics)

        def put(folder: Path) -> None:
            shutil.copytree(copy, folder, dirs_exist_ok=True)

        write_atomically(export, put)
    return metrics


def copy_export(export: Path, folder: Path) -> None:
    """Copies an export without its manifest into a folder that may hold other towers.

    Raises CheckpointError if it cannot be written.
    """
    try:
        shutil.copytree(
            export, folder, dirs_exist_ok=True, copy_function=_copy_whole, ignore=shutil.ignore_patterns(MANIFEST)
        )
    except OSError as error:
        raise CheckpointError(f"export={folder}: cannot write ({error}); the tower is in {export}") from error


def _copy_whole(source: str, target: str) -> str:
    """Copies a file atomically; returns the target."""
    with open(source, "rb") as original, replacing(Path(target)) as file:
        shutil.copyfileobj(original, file)
    return target


def halve(directory: Path) -> None:
    """Rewrites every safetensors file below `directory` with its fp32 tensors in fp16.

    Raises ConfigError if a value overflows fp16.
    """
    for file in directory.rglob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        for name, tensor in tensors.items():
            if tensor.dtype == torch.float32:
                tensors[name] = tensor.half()
                if not torch.isfinite(tensors[name]).all():
                    raise ConfigError(f"half: {name} of {file.name} does not fit 16 bits; export with half=false")
        save_file(tensors, file, metadata={"format": "pt"})


def _command(tower: Tower, argv: list[str]) -> str:
    """Returns the command as a reader would type it, without paths of this machine."""
    local = tuple(f"{name}=" for name in ("data", "out", "export", *tower.folders))
    rest = [
        "init=DIR" if argument.startswith("init=") else argument for argument in argv if not argument.startswith(local)
    ]
    return " ".join([tower.command, "data=DIR", *rest])
