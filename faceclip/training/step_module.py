"""The task's part of a training step as one module, so that DistributedDataParallel and DeepSpeed see it."""

from typing import Any

import torch
from torch import Tensor, nn

from faceclip.training.accumulation import pull_back
from faceclip.training.interfaces import ContrastiveTask, StepContext, Task


class StepModule(nn.Module):
    """Loss of a batch; for a `ContrastiveTask` also the features of a chunk and what pulls a gradient through them.

    `half`: run under bf16 autocast. `compiled`: torch.compile; of a contrastive task only `encode` is compiled, since
    its loss talks to other ranks.
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
        """(loss, parts) of a batch; or its features; or, with `pull` = (cotangents of the features, pairs of a
        parameter and a gradient), the scalar whose gradient is theirs."""
        # Autocast here and not by accelerate, whose precision can be set only once per process.
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
        """Loss and parts from the features of the large batch."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            return self._loss_of(features, context)

    def train(self, mode: bool = True) -> "StepModule":
        """Frozen parts stay in evaluation mode: no dropout, no drifting statistics."""
        super().train(mode)
        for module in self.task_modules.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self
