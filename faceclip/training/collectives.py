"""Sums and gathers over the ranks of a run; on one process they return what they are given."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process writes and prints for all."""
    return world_size() == 1 or dist.get_rank() == 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, without gradient; every rank gets it."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """(N·ranks, …) rows of all ranks in rank order, with gradient: rows receive what the losses of *all* ranks send.

    Every rank must hold as many rows, and every rank must run backward, which communicates (one all-reduce of the
    gathered size). For rows that are not trained, `faceclip.losses.gather_targets` saves that.
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
