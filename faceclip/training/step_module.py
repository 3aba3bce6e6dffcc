"""Wraps the task's part of a training step in one module, as DistributedDataParallel and DeepSpeed need it."""

from typing import Any

import torch
from torch import Tensor, nn

from faceclip.training.accumulation import pull_back
from faceclip.training.interfaces import ContrastiveTask, StepContext, Task


class StepModule(nn.Module):
    """Computes the loss of a batch; for a `ContrastiveTask` also a chunk's features and the backward pass through them.

    half: run under bf16 autocast. compiled: use torch.compile; of a contrastive task only `encode` is compiled, because
    its loss communicates with other ranks.
    """

    def __init__(self, task: Task, device: torch.device, *, half: bool, compiled: bool) -> None:
        super().__init__()
        self.task_modules = task.modules
        self._device, self._half, self._loss = device, half, task.loss
        if isinstance(task, ContrastiveTask):
            self._encode = torch.compile(task.encode) if compiled else task.encode
            self._loss_of = task.loss_of
            self._loss = lambda batch, context: self._loss_of(self._encode(batch, context), context)
        elif compiled:
            self._loss = torch.compile(task.loss)

    def forward(
        self,
        batch: dict[str, Any],
        context: StepContext,
        pull: tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]] | None = None,
        only_features: bool = False,
    ) -> Any:
        """Returns (loss, parts) of a batch; with `only_features` its features; with `pull` a scalar for backward.

        pull: cotangents of the features, and pairs of a parameter and a gradient. The scalar's gradient equals these.
        """
        # Autocast is set here and not by accelerate, whose precision can be set only once per process.
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            if pull is None and not only_features:
                return self._loss(batch, context)
            features = self._encode(batch, context)
            if only_features:
                return features
            assert pull is not None
            cotangents, own = pull
            scalar = pull_back(features, cotangents)
            for parameter, gradient in own:
                scalar = scalar + (parameter.float() * gradient.float()).sum()
            return scalar

    def loss_of(self, features: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its parts from the features of the large batch."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return self._loss_of(features, context)

    def train(self, mode: bool = True) -> "StepModule":
        """Sets the mode; frozen modules stay in evaluation mode, so that they use no dropout and keep their
        statistics."""
        super().train(mode)
        for module in self.task_modules.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self
