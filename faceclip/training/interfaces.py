"""Interfaces between training commands and the trainer: task, configuration and result."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from faceclip.settings import check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a loss may know about its step. `generator` is on `device` and seeded by (seed, step, rank)."""

    step: int
    steps: int
    micro_step: int
    device: torch.device
    generator: torch.Generator


class Task(ABC):
    """Something to train. Subclasses set `modules`, whose parameters with `requires_grad` are trained, and implement
    `loss` and `export`; the other methods have defaults that suit most tasks."""

    modules: nn.Module

    @abstractmethod
    def loss(self, batch: dict[str, Any], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the total loss () and its parts for the log (detached scalars)."""

    @abstractmethod
    def export(self, directory: Path) -> None:
        """Writes the trained model into an empty directory."""

    def validate(self, step: int) -> dict[str, float]:
        """Returns figures on held-out data; none by default."""
        return {}

    def figures(self) -> tuple[str, ...] | None:
        """Returns the names of `validate`'s figures, so that an unknown `trainer.best_metric` is rejected before the
        first step; None if they are known only after the first validation."""
        return None

    def facts(self) -> dict[str, str]:
        """Returns hashes, by name, of the frozen models and files of the training; a run resumes only if they are
        equal."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]] | None:
        """Returns the optimizer's groups; None stands for the trainer's own groups, by `trainer.optimizer` and
        `trainer.weight_decay`."""
        return None


class ContrastiveTask(Task):
    """A task whose loss compares the rows of a batch with each other, so that chunks cannot be averaged.

    With `trainer.accumulate` above 1 the trainer computes `loss_of` once, over the features of all chunks, and runs
    `encode` of every chunk twice (`faceclip.training.accumulation`); the gradient is that of one batch of batch_size ×
    accumulate. On several ranks the mean over ranks of what `loss_of` returns must be the loss of all ranks' rows
    together, since gradients are averaged over ranks.
    """

    @abstractmethod
    def encode(self, batch: dict[str, Any], context: StepContext) -> dict[str, Tensor]:
        """Returns features by name, each (rows, …), including constants of the loss such as labels.

        The rows must not influence each other. Random draws must come from torch's generators or `context.generator`.
        """

    @abstractmethod
    def loss_of(self, features: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the total loss () and its parts (detached scalars) from the features of the whole batch."""

    def loss(self, batch: dict[str, Any], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss_of` of `encode`."""
        return self.loss_of(self.encode(batch, context), context)


@dataclass(kw_only=True)
class TrainerConfig:
    """Settings of a training: its length and optimizer, and what it keeps.

    The gradients of the chunks of a step are averaged; those of a `ContrastiveTask` are the gradients of the one large
    batch. Muon steps inner matrices and kernels, and AdamW the rest (`faceclip.training.muon`).
    """

    steps: int = setting(
        1000, "optimizer steps, each over batch_size × accumulate samples per process", resume="free", least=1
    )
    batch_size: int = setting(64, "samples of a chunk per process", resume="free", least=1)
    accumulate: int = setting(
        1, "chunks of a step: averaged, or one large batch where the loss is contrastive", resume="free", least=1
    )
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "muon: orthogonalized momentum for the matrices, AdamW for the rest"
    )
    moments: Literal["fp32", "int8"] = setting(
        "fp32", "numbers of AdamW's moments; int8 takes 2 bytes per weight in place of 8 (no ZeRO, no muon)"
    )
    learning_rate: float = setting(1e-3, "of AdamW after the warm-up", above=0)
    weight_decay: float = setting(0.01, "of AdamW; biases and norms do not decay", least=0)
    betas: tuple[float, float] = setting((0.9, 0.99), "of AdamW", least=0, below=1)
    warmup_steps: int = setting(100, "steps of linear warm-up", least=0)
    schedule: Literal["cosine", "constant"] = setting("cosine", "course of the rate after the warm-up")
    min_lr_ratio: float = setting(0.0, "share of the rate that is left at the end", least=0, most=1)
    max_grad_norm: float = setting(1.0, "gradients are clipped to it; 0: never", least=0)
    ema_decay: float | None = setting(
        None, "validate and export averaged weights; null: the weights themselves", least=0, below=1
    )
    precision: Literal["fp32", "bf16"] = setting("fp32", "bf16 is autocast")
    # The seeds of steps and ranks, made of it, must fit 64 bits.
    seed: int = setting(0, "of data order and every draw", resume="free", least=0, most=2**32 - 1)
    log_every: int = setting(20, "optimizer steps between log lines; 0: never", resume="free", least=0)
    validate_every: int = setting(0, "optimizer steps between validations; 0: only at the end", resume="free", least=0)
    save_every: int = setting(500, "optimizer steps between checkpoints; 0: only at the end", resume="free", least=0)
    keep_checkpoints: int = setting(2, "newest checkpoints that stay", resume="free", least=1)
    best_metric: str | None = setting(None, "validation figure whose best export is kept in best/", resume="free")
    best_mode: Literal["max", "min"] = setting(
        "max", "whether the larger or the smaller figure is better", resume="free"
    )
    resume: bool = setting(
        True, "resume from the newest checkpoint; false refuses a folder that holds any", resume="free"
    )
    num_threads: int | None = setting(
        None, "torch threads of this process; null: torch decides", resume="free", least=1
    )
    compile: bool = setting(False, "torch.compile the training step")
    device: Literal["auto", "cpu"] = setting(
        "auto", "auto: the accelerator of this process, if any; choose GPUs by CUDA_VISIBLE_DEVICES", resume="free"
    )
    trackers: tuple[Literal["wandb", "tensorboard"], ...] = setting(
        (), "trackers of accelerate beside the run's own log: wandb, tensorboard", resume="free"
    )
    tracker_project: str = setting("faceclip-makeup", "project by which trackers group runs", resume="free")
    tf32: bool | None = setting(None, "float32 products on CUDA by TF32; null: with precision bf16", resume="free")
    timeout_minutes: float = setting(
        30.0, "how long processes wait for each other before they give up", resume="free", above=0
    )
    peak_tflops: float | None = setting(
        None, "peak of a device, for flops_percent in the log; null: a known GPU's for bf16", resume="free", above=0
    )

    def __post_init__(self) -> None:
        check_bounds(self, "trainer.")


@dataclass(frozen=True, kw_only=True)
class Result:
    """Outcome of `Trainer.fit`: the last validation figures, and the folders of the export and the last checkpoint."""

    step: int
    seconds: float
    metrics: dict[str, float]
    export: Path
    checkpoint: Path | None
