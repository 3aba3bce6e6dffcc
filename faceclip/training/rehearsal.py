"""Shared by the `check` commands of both stages: describes the machine and rehearses a run of three steps.

The rehearsal runs what the command itself runs: loading, three steps, a validation, a checkpoint and an export, in a
temporary folder beside `out=`. It measures the printed sizes and times there, and then deletes the folder.
"""

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch

from faceclip.errors import ConfigError, DataError
from faceclip.training.gpu_facts import GpuFacts, driver_version, unused_driver
from faceclip.training.int8_moments import moment_bytes
from faceclip.training.interfaces import Result, TrainerConfig
from faceclip.training.run_folder import BEST, CHECKPOINTS, EXPORT
from faceclip.training.trainer import Trainer

STEPS = 3
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "deepspeed", "open_clip_torch", "numpy")


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What a rehearsal measured.

    result: of the three steps. step_seconds: of the last step. other_seconds: of one validation with checkpoint and
    export. peak: memory of the process in GiB. checkpoint, exports: bytes on disk of a checkpoint, and of all exports.
    """

    result: Result
    step_seconds: float
    other_seconds: float
    peak: float
    checkpoint: int
    exports: int

    def seconds(self, config: TrainerConfig) -> float:
        """Returns the expected seconds of the whole run, in which each validation costs `other_seconds`."""
        validations = 1 + (config.steps - 1) // config.validate_every if config.validate_every else 1
        return config.steps * self.step_seconds + validations * self.other_seconds

    def disk(self, config: TrainerConfig) -> int:
        """Returns the most bytes that the run needs: kept checkpoints, one being written, exports and their
        replacements."""
        return (config.keep_checkpoints + 1) * self.checkpoint + 2 * self.exports


def machine(device: torch.device, precision: str = "fp32") -> list[str]:
    """Returns lines that describe the interpreter, the packages, and the device with its driver and memory.

    Raises ConfigError for a GPU whose driver or generation this PyTorch does not suit, or that lacks the precision.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [f"Python {platform.python_version()}, {versions}"]
    if device.type == "cuda":
        facts = GpuFacts.of(device)
        facts.check(precision=precision)
        return lines + facts.lines()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    lines.append(f"{device.type}: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {memory:.0f} GiB")
    unused = unused_driver(driver_version(), torch.version.cuda)
    return lines + ([unused] if unused else [])


def one_process() -> None:
    """Raises ConfigError if a launcher started several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("the check runs in one process: start it by python -m, without accelerate launch or torchrun")


def memory_plan(trainer: Trainer) -> dict[str, int]:
    """Returns the bytes of weights, gradients, moments and averages of one process without ZeRO, by name."""
    trained = sum(p.numel() for p in trainer.trainable.values())
    moments = 4 * trained if trainer.config.optimizer == "muon" else 8 * trained
    if trainer.config.moments == "int8":
        moments = sum(moment_bytes(parameter) for parameter in trainer.trainable.values())
    return {
        "weights": sum(p.numel() * p.element_size() for p in trainer.task.modules.parameters()),
        "gradients": sum(p.numel() * p.element_size() for p in trainer.trainable.values()),
        "moments": moments,
        "averages": 4 * trained if trainer.average else 0,
    }


def rehearse(config: TrainerConfig, out: str, begin: Callable[[TrainerConfig, str], Trainer]) -> Rehearsal:
    """Runs three steps of the trainer that `begin(config, out)` returns, in a temporary folder beside `out`.

    Raises DataError if the disk at `out` is too small for the whole run, and all errors of the run itself.
    """
    place = Path(out).resolve().parent
    while not place.is_dir():
        place = place.parent
    short = replace(config, steps=STEPS, log_every=1, validate_every=0, save_every=0)
    with tempfile.TemporaryDirectory(prefix=".check-", dir=place) as folder:
        run = Path(folder) / "run"
        result = begin(short, str(run)).fit()
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        lines = [line for line in lines if line["kind"] == "train"]
        samples = config.batch_size * config.accumulate
        seconds = [samples / line["samples_per_second"] for line in lines]
        found = Rehearsal(
            result=result,
            step_seconds=seconds[-1],
            other_seconds=max(0.0, result.seconds - sum(seconds)),
            peak=lines[-1]["memory_gib"],
            checkpoint=_size(run / CHECKPOINTS),
            exports=_size(run / EXPORT) + _size(run / BEST),
        )
        free, needed = shutil.disk_usage(folder).free, found.disk(config)
    if free < needed:
        raise DataError(f"out={out}: {gib(free)} are free on this disk, and the run needs up to {gib(needed)}")
    return found


def report(found: Rehearsal, config: TrainerConfig, plan: dict[str, int], price: float) -> list[str]:
    """Returns lines about memory, disk, and the expected time and cost (`price` per hour) of the whole run."""
    hours = found.seconds(config) / 3600
    cost = f", {hours * price:.2f} at {price:g} an hour" if price else ""
    parts = ", ".join(f"{name} {gib(size)}" for name, size in plan.items() if size)
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found.result.metrics.items())
    return [
        f"memory: {parts}; peak of the process, with activations, {found.peak:.2f} GiB",
        f"disk: checkpoint {gib(found.checkpoint)}, exports {gib(found.exports)}, run up to {gib(found.disk(config))}",
        f"validation: {figures or 'none'}",
        f"time: {found.step_seconds:.2f} s a step, {found.other_seconds:.1f} s for validation, checkpoint and export; "
        f"{config.steps} steps take about {timedelta(seconds=round(hours * 3600))}{cost}",
    ]


def gib(size: float) -> str:
    """Formats bytes as GiB."""
    return f"{size / 2**30:.2f} GiB"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
