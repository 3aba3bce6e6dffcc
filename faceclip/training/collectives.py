"""Sums and gathers tensors over the ranks of a run; with one process they are returned unchanged."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main_process() -> bool:
    """Returns whether this process writes and prints on behalf of all."""
    return world_size() == 1 or dist.get_rank() == 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """Returns the sum of a tensor over all ranks, without gradient, on every rank."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """Returns the rows (N·ranks, …) of all ranks in rank order; each row receives gradients from the losses of all
    ranks.

    Every rank must hold the same number of rows and must run backward, which communicates (one all-reduce of the
    gathered size). For rows that are not trained, `faceclip.losses.gather_targets` avoids that.
    """
    return rows if world_size() == 1 else _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows)
        return torch.cat(gathered)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        count = len(gradient) // dist.get_world_size()
        return gradient[dist.get_rank() * count :][:count]
