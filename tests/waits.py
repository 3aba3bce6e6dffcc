"""The forward pass of a training step on a GPU that is not there, in which nothing that waits for it stays unseen.

Fake tensors have a device and no values: a read (`item`, `bool`, a mask as an index) raises. A copy between host and
device waits too, unless it is from pinned memory; `Copies` collects these.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Copies(TorchDispatchMode):
    """Context that collects in `seen` what takes host tensors to the GPU, or tensors of the GPU to the host.

    Host numbers without a dimension are left out where an operator computes with them: kernels take them as arguments.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        devices = {leaf.device.type for leaf in (*inputs, *outputs)}
        if (kwargs or {}).get("non_blocking") and inputs[0].device.type == "cpu":
            return result  # read from the host's memory at once, and nothing waits
        moves = "copy" in str(func) or any(leaf.ndim for leaf in inputs if leaf.device.type == "cpu")
        if devices == {"cpu", "cuda"} and moves:
            self.seen.append(f"{func} of {[(tuple(leaf.shape), leaf.device.type) for leaf in inputs]}")
        return result


@contextmanager
def on_fake_gpu(modules: nn.Module) -> Iterator[Copies]:
    """Context in which parameters and buffers of `modules`, and new tensors, are fake ones of a GPU, for good."""
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as copies:
        known: dict[int, nn.Parameter] = {}
        for module in modules.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                if id(value) not in known:
                    known[id(value)] = nn.Parameter(fake(value), requires_grad=value.requires_grad)
                module.register_parameter(name, known[id(value)])
            for name, value in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, fake(value), persistent=False)
        yield copies


def fake(value: Tensor) -> Tensor:
    """A tensor of this shape and type on the fake GPU. Needs the context of `on_fake_gpu`."""
    return torch.empty(value.shape, dtype=value.dtype, device="cuda")


def fake_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The same for all of a batch."""
    return {name: fake(value) if isinstance(value, Tensor) else value for name, value in batch.items()}
