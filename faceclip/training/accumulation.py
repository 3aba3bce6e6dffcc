"""Contrastive steps over batches that do not fit into memory (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup").

A first pass computes the features of all chunks without a graph. The loss is computed once over all of them, so that
its own parameters (logit scale and bias) receive their gradient once. Then each chunk runs again, with the random state
of its first run, and receives the gradient of its features. The sum of these gradients equals that of the single large
batch, provided that the encoder does not mix the rows of a batch (no batch normalization in training mode).

`accumulate_exactly` does both passes on one process. A trainer that has to synchronize gradients between processes
runs the second pass itself: `first_pass`, then for every chunk `pull_back` inside `FirstPass.replayed`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Features = Mapping[str, Tensor]
Generators = Sequence[torch.Generator]


@dataclass(frozen=True)
class FirstPass:
    """Results of the first pass, which the second one needs.

    value: the loss, detached. cotangents: per chunk, the gradient of the loss with respect to each trained feature.
    own: gradient with respect to each of `parameters`, None for those that the loss does not use. states: random states
    at the beginning of each chunk.
    """

    value: Tensor
    cotangents: list[dict[str, Tensor]]
    own: Sequence[Tensor | None]
    states: list[list[Tensor]]
    generators: Generators

    @contextmanager
    def replayed(self, number: int) -> Iterator[None]:
        """Context in which chunk `number` repeats the random draws of the first pass; later draws are not affected."""
        after = _random_state(self.generators)
        _set_random_state(self.states[number], self.generators)
        try:
            yield
        finally:
            _set_random_state(after, self.generators)


def accumulate_exactly(
    encode: Callable[[Any], Features], chunks: Sequence[Any], loss: Callable[[dict[str, Tensor]], Tensor]
) -> Tensor:
    """Accumulates in `.grad` the gradient of one backward pass over all chunks together; returns the loss, detached.

    Args:
        encode: one chunk → named features, each (rows of the chunk, …). It is called twice for each chunk.
        chunks: the large batch in pieces, in order; their sizes may differ.
        loss: features of the large batch (the chunks' features, concatenated by name) → scalar.

    Only one chunk's activations exist at a time; features of the whole batch are held twice (value and gradient).

    Raises:
        ValueError: no chunks, or chunks whose features have other names.
    """
    first = first_pass(encode, chunks, loss)
    for number, chunk in enumerate(chunks):
        with first.replayed(number):
            scalar = pull_back(encode(chunk), first.cotangents[number])
            if scalar.requires_grad:
                scalar.backward()
    return first.value


def first_pass(
    encode: Callable[[Any], Features],
    chunks: Sequence[Any],
    loss: Callable[[dict[str, Tensor]], Tensor],
    *,
    parameters: Sequence[Tensor] | None = None,
    generators: Generators = (),
) -> FirstPass:
    """Computes the features of all chunks, the loss over them, and its gradient with respect to the features.

    Args:
        encode, chunks, loss: as in `accumulate_exactly`.
        parameters: tensors that the loss may use itself; their gradient is returned, and `.grad` is not changed. If
            None, the gradient of all that the loss uses is accumulated in `.grad`.
        generators: random generators, beside torch's own, that `encode` draws from.

    Raises ValueError as `accumulate_exactly` does.
    """
    if not chunks:
        raise ValueError("chunks is empty: a batch needs at least one")
    states, parts, moving = [], [], set()
    for number, chunk in enumerate(chunks):
        states.append(_random_state(generators))
        # Only the first chunk builds a graph, to find out which features are trained: gradients of constants would
        # double the work of the loss.
        with torch.set_grad_enabled(number == 0):
            part = dict(encode(chunk))
        if number == 0:
            moving = {name for name, value in part.items() if value.requires_grad}
        parts.append({name: value.detach() for name, value in part.items()})
        if parts[-1].keys() != parts[0].keys():
            raise ValueError(f"chunk {number} has features {sorted(parts[-1])}, chunk 0 has {sorted(parts[0])}")
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    leaves = {name: whole[name].requires_grad_() for name in parts[0] if name in moving}
    sizes = [len(next(iter(part.values()))) for part in parts]
    del parts, part
    value = loss(whole)
    if parameters is None:
        value.backward()  # the loss' own parameters receive their gradient here, once
        found, own = [leaf.grad for leaf in leaves.values()], []
    else:
        gradients = torch.autograd.grad(value, [*leaves.values(), *parameters], allow_unused=True)
        found, own = gradients[: len(leaves)], list(gradients[len(leaves) :])
    pieces = {name: g.split(sizes) for name, g in zip(leaves, found, strict=True) if g is not None}
    cotangents = [{name: piece[number] for name, piece in pieces.items()} for number in range(len(sizes))]
    return FirstPass(value.detach(), cotangents, own, states, generators)


def pull_back(features: Features, cotangents: Mapping[str, Tensor]) -> Tensor:
    """Returns the scalar Σ ⟨feature, cotangent⟩, whose gradient is that of the large batch's loss through
    `features`."""
    total = torch.zeros((), device=next(iter(features.values())).device)
    for name, cotangent in cotangents.items():
        total = total + (features[name].float() * cotangent.float()).sum()
    return total


def _random_state(generators: Generators) -> list[Tensor]:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *(generator.get_state() for generator in generators), *devices]


def _set_random_state(state: list[Tensor], generators: Generators) -> None:
    torch.set_rng_state(state[0])
    for generator, kept in zip(generators, state[1:], strict=False):
        generator.set_state(kept)
    devices = state[1 + len(generators) :]
    if devices:
        torch.cuda.set_rng_state_all(devices)
