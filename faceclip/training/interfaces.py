"""What a training command hands to the trainer and gets back."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from faceclip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a loss may know about the step it serves. `generator` lives on `device`, seeded by (seed, step)."""

    step: int
    steps: int
    micro_step: int
    device: torch.device
    generator: torch.Generator


@runtime_checkable
class Task(Protocol):
    """What is trained. Optional methods: `parameter_groups()` → AdamW groups; `facts()` → hashes by name of the frozen
    things that the training stands on, without which a run is not resumed; `figures()` → names of what `validate`
    gives, so that an unknown `trainer.best_metric` is refused before the first step."""

    modules: nn.Module

    def loss(self, batch: dict[str, Any], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its parts (detached scalars, for the log)."""
        ...

    def validate(self, step: int) -> dict[str, float]:
        """Figures on held-out data."""
        ...

    def export(self, directory: Path) -> None:
        """Write what users load into an empty directory."""
        ...


@runtime_checkable
class ContrastiveTask(Task, Protocol):
    """A task whose loss compares the rows of a batch with each other, so that chunks cannot be averaged.

    With `trainer.accumulate` above 1 the trainer computes `loss_of` once, over the features of all chunks, and runs
    `encode` of every chunk twice (`faceclip.training.accumulation`); the gradient is that of one batch of batch_size ×
    accumulate. `loss` must equal `loss_of` of `encode`. On several ranks the mean over ranks of what `loss_of` returns
    must be the loss of all ranks' rows together, since gradients are averaged over ranks.
    """

    def encode(self, batch: dict[str, Any], context: StepContext) -> dict[str, Tensor]:
        """Features by name, each (rows, …); rows must not see each other. Constants of the loss, such as labels,
        belong here too. Random draws come from torch's generators or `context.generator`."""
        ...

    def loss_of(self, features: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its parts (detached scalars) from the features of the whole batch."""
        ...


@dataclass(kw_only=True)
class TrainerConfig:
    """steps: optimizer steps, each over batch_size × accumulate samples per process. With `accumulate` above 1 the
    gradients of the chunks are averaged; of a `ContrastiveTask` they are those of the one large batch.

    Rates: `optimizer` at `learning_rate` after `warmup_steps`, then `schedule` down to min_lr_ratio. "muon" steps inner
    matrices and kernels by Muon and the rest by AdamW (`faceclip.training.muon`).
    `max_grad_norm` 0 switches clipping off. `ema_decay`: validate and export averaged weights. `precision`
    "bf16" is autocast. *_every count optimizer steps, 0 is never; `best_metric`: name of the validation
    figure whose best export is kept in `best/` (larger is better unless `best_mode` is "min"). `resume`: go on
    from the newest checkpoint; without it a folder that holds checkpoints is refused. `num_threads`: torch threads
    of this process. `device`: "auto" is the accelerator that the launcher gives this process, the CPU if the machine
    has none; choose GPUs by CUDA_VISIBLE_DEVICES.
    """

    steps: int = 1000
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr_ratio: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    log_every: int = 20
    validate_every: int = 0
    save_every: int = 500
    keep_checkpoints: int = 2
    best_metric: str | None = None
    best_mode: Literal["max", "min"] = "max"
    resume: bool = True
    num_threads: int | None = None
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name}: must be at least 1, got {getattr(self, name)}")
        for name in ("log_every", "validate_every", "save_every", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"trainer.{name}: must not be negative, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"trainer.learning_rate: must be positive, got {self.learning_rate}")
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"trainer.{name}: must be 0 or more, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"trainer.betas: both must be in [0, 1), got {list(self.betas)}")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ConfigError(f"trainer.min_lr_ratio: must be from 0 to 1, got {self.min_lr_ratio}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"trainer.ema_decay: must be in [0, 1) or null, got {self.ema_decay}")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"trainer.num_threads: must be at least 1 or null, got {self.num_threads}")
        if not 0 <= self.seed < 2**32:  # the seeds of steps and ranks, made of it, must fit 64 bits
            raise ConfigError(f"trainer.seed: must be from 0 to 4294967295, got {self.seed}")
        if self.optimizer not in ("adamw", "muon"):
            raise ConfigError(f"trainer.optimizer: must be 'adamw' or 'muon', got {self.optimizer!r}")
        if self.device not in ("auto", "cpu"):
            raise ConfigError(
                f"trainer.device: must be 'auto' (the accelerator of this process, if there is one) or "
                f"'cpu', got {self.device!r}; choose GPUs by CUDA_VISIBLE_DEVICES"
            )


@dataclass(frozen=True, kw_only=True)
class Result:
    """Outcome of `Trainer.fit`: the last validation figures and where the export and the last checkpoint lie."""

    step: int
    seconds: float
    metrics: dict[str, float]
    export: Path
    checkpoint: Path | None
