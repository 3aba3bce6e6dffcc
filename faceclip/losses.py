"""Contrastive losses over all pairs of a batch, in row blocks: memory for backward is O(N·D), never O(N²).

Both losses are separable by rows, so the gradient of a block is formed in the same pass as its value and only scaled
in backward: no N × N matrix outlives its block and none is computed twice. Everything is computed in float32,
features of bfloat16 too: products that are given back in 16 bits would round the logits (docs/encoder.md, "Loss").

Labels decide the pairs: equal labels are positives, equal groups that are not positives are left out, all else is a
negative. Same-identity pairs are thus positives (labels = identities) or ignored (groups = identities). With several
columns of labels a pair is positive where any column is equal. No value of a tensor is read, so that a step on a GPU
does not wait: rows that do not count in a loss get the weight 0 instead of being left out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from faceclip.cpu.matmul import times_transpose
from faceclip.errors import ConfigError
from faceclip.training.collectives import gather_rows

# Entries of one block of logits. On a CPU a block stays in the cache; a GPU wants enough rows to fill it.
BLOCK_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 24}
MIN_ROWS = 128  # of a block: every block reads and writes the whole gradient of the targets


def gather_targets(targets: Tensor) -> Tensor:
    """(N·ranks, …) rows of all ranks in rank order, without gradient; the input itself, detached, on one rank."""
    return gather_rows(targets.detach())


def sigmoid_contrastive_loss(
    queries: Tensor,
    targets: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    query_labels: Tensor,
    target_labels: Tensor,
    query_groups: Tensor | None = None,
    target_groups: Tensor | None = None,
    query_weights: Tensor | None = None,
) -> Tensor:
    """Sigmoid loss (Zhai et al. 2023, eq. 1): −Σ_ij log σ(z_ij (e^log_scale q_i·t_j + bias)) / N, z = ±1 by labels.

    Args:
        queries (N, D) and targets (M, D) of unit length; log_scale and bias: scalars.
        query_labels (N,), target_labels (M,): integers; equal is a positive pair. Or (N, K) and (M, K): equal in any
            column.
        query_groups (N,), target_groups (M,): equal groups with unequal labels are left out of the sum.
        query_weights (N,): factor of each query in the sum, which is still divided by N; None: 1.

    Raises:
        ConfigError: sizes that do not fit together, no targets, labels that are missing or no integers, weights that
            are no floating-point numbers, or scalars that are none.
    """
    labels = (query_labels, target_labels, query_groups, target_groups)
    _check(queries, targets, *labels, weights=query_weights, log_scale=log_scale, bias=bias)
    scalars = (log_scale.reshape(()), bias.reshape(()))
    return _RowBlockLoss.apply(queries, targets, *scalars, labels, query_weights, _sigmoid_block)


def infonce_loss(
    queries: Tensor,
    targets: Tensor,
    log_scale: Tensor,
    query_labels: Tensor,
    target_labels: Tensor,
    query_groups: Tensor | None = None,
    target_groups: Tensor | None = None,
    query_weights: Tensor | None = None,
) -> Tensor:
    """Softmax contrastive loss of queries over targets, positives averaged outside the log (Khosla et al. 2020, eq. 2).

    Arguments as in `sigmoid_contrastive_loss`; one direction (add the transposed call for the symmetric form). Rows
    without a positive contribute nothing but count in the mean.
    """
    labels = (query_labels, target_labels, query_groups, target_groups)
    _check(queries, targets, *labels, weights=query_weights, log_scale=log_scale)
    scalars = (log_scale.reshape(()), torch.zeros_like(log_scale.reshape(())))
    return _RowBlockLoss.apply(queries, targets, *scalars, labels, query_weights, _softmax_block)


def _check(queries: Tensor, targets: Tensor, *labels: Tensor | None, weights: Tensor | None, **scalars: Tensor) -> None:
    if queries.ndim != 2 or targets.ndim != 2 or queries.shape[1] != targets.shape[1]:
        shapes = tuple(queries.shape), tuple(targets.shape)
        raise ConfigError(f"queries (N, D) and targets (M, D) expected, got {shapes[0]} and {shapes[1]}")
    if len(targets) == 0:
        raise ConfigError(f"targets is empty, shape {tuple(targets.shape)}: a contrastive loss needs at least one")
    for name, value in scalars.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"{name} must be a tensor with one number, got {found}")
    names = ("query_labels", "target_labels", "query_groups", "target_groups")
    first = labels[0]
    columns = tuple(first.shape[1:]) if isinstance(first, Tensor) and first.ndim == 2 else ()
    for name, value, rows in zip(names, labels, (len(queries), len(targets)) * 2, strict=True):
        if value is None:
            if name.endswith("labels"):
                raise ConfigError(
                    f"{name} is missing: give the ({rows},) identities that decide which pairs are positive"
                )
            continue
        wanted = (rows, *columns) if name.endswith("labels") else (rows,)
        if not isinstance(value, Tensor):
            raise ConfigError(f"{name} must be a tensor of integers, got {type(value).__name__}")
        if value.shape != wanted:
            raise ConfigError(f"{name} must have shape {wanted}, got {tuple(value.shape)}")
        if value.ndim == 2 and value.shape[1] == 0:
            raise ConfigError(f"{name} must have at least one column, got {tuple(value.shape)}")
        if value.is_floating_point() or value.is_complex():
            raise ConfigError(f"{name} must be integers, got {value.dtype}")  # NaN would equal nothing, not even itself
    if (labels[2] is None) != (labels[3] is None):
        raise ConfigError("query_groups and target_groups go together: give both or neither")
    if weights is not None:
        right = isinstance(weights, Tensor) and weights.is_floating_point() and weights.shape == (len(queries),)
        if not right:
            found = f"{tuple(weights.shape)} {weights.dtype}" if isinstance(weights, Tensor) else type(weights).__name__
            raise ConfigError(f"query_weights must be ({len(queries)},) floating-point numbers, got {found}")


def _sigmoid_block(
    logits: Tensor, positive: Tensor, ignored: Tensor | None, weights: Tensor | None, spare: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss summed over a block, each row times its weight (None: 1), and its gradient by the logits.

    `logits` and `spare` (2, …) are overwritten: fresh memory for every block would cost more than the arithmetic.
    """
    sign, loss = spare
    sign.copy_(positive).mul_(-2).add_(1)  # −z
    signed = logits.mul_(sign)
    torch.ops.aten.softplus.out(signed, out=loss)
    gradient = signed.sigmoid_().mul_(sign)
    if ignored is not None:
        loss.masked_fill_(ignored, 0)
        gradient.masked_fill_(ignored, 0)
    if weights is None:
        return loss.sum(), gradient
    return loss.sum(-1).mul_(weights).sum(), gradient.mul_(weights[:, None])


def _softmax_block(
    logits: Tensor, positive: Tensor, ignored: Tensor | None, weights: Tensor | None, spare: Tensor
) -> tuple[Tensor, Tensor]:
    """As `_sigmoid_block`, for the log of each row's softmax averaged over its positives."""
    share, shifted = spare
    share.copy_(positive)
    count = share.sum(-1, keepdim=True)
    has_positive = count > 0
    share.div_(count.clamp_min(1))
    if ignored is not None:
        logits.masked_fill_(ignored, float("-inf"))
    top = logits.amax(-1, keepdim=True)
    logits.sub_(top.masked_fill_(top == float("-inf"), 0))  # a row may have nothing but ignored pairs
    torch.where(positive, logits, logits.new_zeros(()), out=shifted).mul_(share)
    weight = logits.exp_().sum(-1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).tiny)
    loss = torch.where(has_positive, weight.log() - shifted.sum(-1, keepdim=True), 0.0)
    gradient = logits.mul_(has_positive / weight).sub_(share)
    if weights is None:
        return loss.sum(), gradient
    return loss[:, 0].mul_(weights).sum(), gradient.mul_(weights[:, None])


def _same(queries: Tensor, targets: Tensor) -> Tensor:
    """(n, M) whether labels are equal in any column, of (n,) and (M,), or (n, K) and (M, K)."""
    if queries.ndim == 1:
        return queries[:, None] == targets
    first, *further = (a[:, None] == b for a, b in zip(queries.unbind(1), targets.unbind(1), strict=True))
    for equal in further:
        first |= equal
    return first


class _RowBlockLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        with torch.autocast(arguments[0].device.type, enabled=False):  # float32, whatever surrounds the loss
            return _RowBlockLoss._forward(ctx, *arguments)

    @staticmethod
    def _forward(ctx: Any, queries, targets, log_scale, bias, labels, weights, block_loss) -> Tensor:
        query_labels, target_labels, query_groups, target_groups = labels
        weights = None if weights is None else weights.detach().float()
        scale = log_scale.detach().float().exp()
        offset = bias.detach().float()
        t = targets.detach().float()
        count = max(1, len(queries))  # no queries, no loss
        entries = BLOCK_ENTRIES.get(queries.device.type, 1 << 24)
        rows = min(count, max(MIN_ROWS, entries // max(1, len(t))))
        total, by_bias = torch.zeros((), device=queries.device), torch.zeros((), device=queries.device)
        need_q, need_t, need_scale, need_bias = ctx.needs_input_grad[:4]
        by_query = torch.empty(queries.shape, device=queries.device) if need_q or need_scale else None
        by_target = torch.zeros(t.T.shape, device=queries.device) if need_t else None  # transposed
        spare = torch.empty(2, rows, len(t), device=queries.device)
        for start in range(0, len(queries), rows):
            at = slice(start, start + rows)
            q = queries[at].detach().float()
            logits = times_transpose(q * scale, t).add_(offset)
            positive = _same(query_labels[at], target_labels)
            ignored = None
            if query_groups is not None:
                ignored = (query_groups[at, None] == target_groups) & ~positive
            weight = None if weights is None else weights[at]
            loss, gradient = block_loss(logits, positive, ignored, weight, spare[:, : len(q)])
            total += loss
            if need_bias:
                by_bias += gradient.sum()
            if by_query is not None:
                by_query[at] = times_transpose(gradient, t.T)
            if by_target is not None:
                by_target += times_transpose(q.T, gradient.T)
        # Only scaled in backward. d/dlog_scale = scale · Σ_ij g_ij q_i·t_j = scale · Σ_i q_i·(Σ_j g_ij t_j).
        by_log_scale = (queries.detach().float() * by_query).sum() * scale / count if need_scale else None
        ctx.scalars = (by_log_scale, by_bias / count)
        ctx.dtypes = (queries.dtype, targets.dtype, log_scale.dtype, bias.dtype)
        by_query = by_query.mul_(scale / count) if need_q and by_query is not None else None
        if by_target is not None:
            by_target = by_target.T * (scale / count)
        ctx.save_for_backward(by_query, by_target)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor):
        by_query, by_target = ctx.saved_tensors
        by_scale, by_bias = ctx.scalars
        gradients = (by_query, by_target, by_scale, by_bias)
        needed = zip(gradients, ctx.dtypes, ctx.needs_input_grad[:4], strict=True)
        return *((g * upstream).to(dtype) if need else None for g, dtype, need in needed), None, None, None
