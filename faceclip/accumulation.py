"""Contrastive steps over batches that do not fit: features first, then recomputed chunk by chunk (Gao et al. 2021,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup").

The loss sees all features of the large batch once, so its own parameters (logit scale and bias) get their gradient
once; each chunk is then run again, with the random state of its first run, and given the gradient of its features.
The sum of gradients is that of the single large batch, as long as rows of a batch do not see each other in the
encoder (no batch normalization in training mode).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Features = Mapping[str, Tensor]


def accumulate_exactly(
    encode: Callable[[Any], Features], chunks: Sequence[Any], loss: Callable[[dict[str, Tensor]], Tensor]
) -> Tensor:
    """Adds to `.grad` what one backward pass over all chunks together would add; returns the loss, detached.

    Args:
        encode: one chunk → named features, each (rows of the chunk, …). It is called twice for each chunk.
        chunks: the large batch in pieces, in order; they need not be of one size.
        loss: features of the large batch (the chunks' features, concatenated by name) → scalar.

    Only one chunk's activations exist at a time; features of the whole batch are held twice (value and gradient).
    Under DistributedDataParallel, run all but the last chunk's second pass in `no_sync`, or reduce gradients
    afterwards.

    Raises:
        ValueError: no chunks, or chunks whose features have other names.
    """
    if not chunks:
        raise ValueError("chunks is empty: a batch needs at least one")
    states, parts = [], []
    with torch.no_grad():
        for number, chunk in enumerate(chunks):
            states.append(_random_state())
            parts.append(dict(encode(chunk)))
            if parts[-1].keys() != parts[0].keys():
                raise ValueError(f"chunk {number} has features {sorted(parts[-1])}, chunk 0 has {sorted(parts[0])}")
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    leaves = {name: value.requires_grad_() for name, value in whole.items() if value.is_floating_point()}
    value = loss(whole)
    value.backward()  # the loss' own parameters receive their gradient here, once

    after = _random_state()
    begin = 0
    rows = [len(next(iter(part.values()))) for part in parts]
    del parts, whole
    try:
        for chunk, state, count in zip(chunks, states, rows, strict=True):
            _set_random_state(state)
            features = encode(chunk)
            pairs = [(features[name], leaf.grad[begin : begin + count]) for name, leaf in leaves.items()
                     if leaf.grad is not None and features[name].requires_grad]  # fmt: skip
            if pairs:
                torch.autograd.backward(*zip(*pairs, strict=True))
            begin += count
    finally:
        _set_random_state(after)
    return value.detach()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), devices


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
