"""What a pipeline remembers of faces that it has seen: the second picture of a face costs no detection, crop or fit.
The joint encoder's conditioning of negative texts is remembered, too.

Everything is kept by content, never by path or object, and what a network made is kept only as long as that network has
the same weights at the same place in the same precision. Changes of weights through `.data` are not seen: the
pipeline's `forget_faces()` is needed after them.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from faceclip.storage.hashes import bytes_hash, settings_text, tensors_hash

T = TypeVar("T")
MAX_BYTES = 2**28  # of everything that is kept: 256 MiB
MAX_ENTRIES = 64
_NO_SETTINGS = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures")


class WeightsMark:
    """Tells whether a network still has the weights that it had: the same tensors, unchanged, on the same device.

    Changes are counted by PyTorch, which does not count those through a tensor's `.data`. These are not seen.
    """

    def __init__(self, network: nn.Module) -> None:
        self._seen = [(weakref.ref(tensor), _state(tensor)) for tensor in _tensors(network)]

    def holds(self, network: nn.Module) -> bool:
        """Whether `network` is the one that was marked, and nothing has changed (unless through `.data`) or moved its
        weights since."""
        now = _tensors(network)
        return len(now) == len(self._seen) and all(
            seen() is tensor and state == _state(tensor) for (seen, state), tensor in zip(self._seen, now, strict=True)
        )


class KnownFaces:
    """A bounded memory: at most `MAX_ENTRIES` results and `MAX_BYTES`, the least recently used leave first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, Hashable], Any] = OrderedDict()
        self._marks: dict[str, WeightsMark] = {}

    def __reduce__(self) -> tuple[type[KnownFaces], tuple]:
        return KnownFaces, ()  # a copy of a pipeline begins with nothing

    def __len__(self) -> int:
        return len(self._entries)

    def recall(self, kind: str, key: Hashable, make: Callable[[], T], *, by: nn.Module | None = None) -> T:
        """The result that `make` gave for this `key`, now or before. It must not be changed.

        kind: what the result is. by: the network that makes results of this kind; other weights forget all of them.
        """
        if by is not None and not (kind in self._marks and self._marks[kind].holds(by)):
            self.forget(kind)
            self._marks[kind] = WeightsMark(by)
        place = (kind, key)
        if place in self._entries:
            self._entries.move_to_end(place)
            return self._entries[place]
        result = make()
        self._entries[place] = result
        while len(self._entries) > MAX_ENTRIES or self._size() > MAX_BYTES:
            self._entries.popitem(last=False)
        return result

    def forget(self, kind: str | None = None) -> None:
        """Drop all results, or those of one kind."""
        for place in [place for place in self._entries if kind in (None, place[0])]:
            del self._entries[place]
        if kind is None:
            self._marks.clear()

    def _size(self) -> int:
        return sum(_size(value) for value in self._entries.values())


def picture_key(pixels: np.ndarray, *others: bytes | np.ndarray) -> str:
    """A key of a picture (H,W,3) uint8, together with other bytes."""
    return bytes_hash(str(pixels.shape).encode(), np.ascontiguousarray(pixels), *others)


def network_hash(network: nn.Module) -> str:
    """SHA-256 of a network's configuration and its weights, rounded to bfloat16.

    Rounding gives one hash for weights that were stored in 16 bits, whether they are loaded in that precision or in
    float32. A network that was trained in float32 has another hash after a cast to float16.
    """
    head = type(network).__name__ + settings_text(_settings(getattr(network, "config", {})))
    rounded = ((name, value.detach().to(torch.bfloat16)) for name, value in network.state_dict().items())
    return tensors_hash(rounded, head)


def _settings(config: Any) -> Any:
    """A configuration as a dictionary. transformers' own holds versions and precisions too, which are left out."""
    if not hasattr(config, "to_diff_dict"):
        return config
    return {key: value for key, value in config.to_diff_dict().items() if key not in _NO_SETTINGS}


def _tensors(network: nn.Module) -> list[Tensor]:
    # One walk for parameters and buffers: this runs in every call.
    held = (values for module in network.modules() for values in (module._parameters, module._buffers))
    return [tensor for values in held for tensor in values.values() if tensor is not None]


def _state(tensor: Tensor) -> tuple[Any, ...]:
    # Tensors of inference mode count no changes; they cannot be changed outside of it either.
    version = None if tensor.is_inference() else tensor._version
    return version, tensor.dtype, tensor.device


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum(_size(part) for part in value)
    return sum(_size(part) for part in vars(value).values()) if hasattr(value, "__dict__") else 0
