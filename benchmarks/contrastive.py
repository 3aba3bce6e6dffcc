"""The contrastive losses that the benchmarks compare: row blocks, the dense form by plain autograd, and a dense form
for features of 16 bits that was not taken."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from faceclip.losses import infonce_loss, sigmoid_contrastive_loss


def dense_sigmoid(q: Tensor, t: Tensor, scale: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid loss by plain autograd."""
    sign = (labels[:, None] == labels) * 2.0 - 1.0
    return -F.logsigmoid(sign * (scale.exp() * q @ t.T + bias)).sum() / len(q)


def dense_infonce(q: Tensor, t: Tensor, scale: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    """Softmax loss by plain autograd, positives averaged outside the log."""
    positive = labels[:, None] == labels
    log_probability = (scale.exp() * q @ t.T).log_softmax(1)
    return -(torch.where(positive, log_probability, 0).sum(1) / positive.sum(1)).mean()


def block_sigmoid(q: Tensor, t: Tensor, scale: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid loss in row blocks."""
    return sigmoid_contrastive_loss(q, t, scale, bias, labels, labels)


def block_infonce(q: Tensor, t: Tensor, scale: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    """Softmax loss in row blocks."""
    return infonce_loss(q, t, scale, labels, labels)


class _Mixed(torch.autograd.Function):
    """Products of bfloat16, which round the logits and the gradients, and all between them in float32."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, t: Tensor, log_scale: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        dots, positive, scale = (q @ t.T).float(), labels[:, None] == labels, log_scale.exp()
        if bias is None:
            log_probability = (dots * scale).log_softmax(1)
            share = positive / positive.sum(1, keepdim=True)
            loss = -(log_probability * share).sum() / len(q)
            gradient = log_probability.exp().sub_(share).div_(len(q))
        else:
            signed = (dots * scale + bias).mul_(sign := positive * 2.0 - 1.0)
            loss = -F.logsigmoid(signed).sum() / len(q)
            gradient = signed.neg_().sigmoid_().mul_(-sign).div_(len(q))
        rounded, by_bias = gradient.bfloat16(), None if bias is None else gradient.sum()
        by_query, by_target = ((x @ y).float() * scale for x, y in ((rounded, t), (rounded.T, q)))
        ctx.save_for_backward(by_query, by_target, (gradient * dots).sum() * scale, by_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        by_query, by_target, by_scale, by_bias = ctx.saved_tensors
        features = ((x * upstream).bfloat16() for x in (by_query, by_target))
        return *features, by_scale * upstream, None if by_bias is None else by_bias * upstream, None


def mixed_sigmoid(q: Tensor, t: Tensor, scale: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid loss by `_Mixed`."""
    return _Mixed.apply(q, t, scale, bias, labels)


def mixed_infonce(q: Tensor, t: Tensor, scale: Tensor, _: Tensor, labels: Tensor) -> Tensor:
    """Softmax loss by `_Mixed`."""
    return _Mixed.apply(q, t, scale, None, labels)
