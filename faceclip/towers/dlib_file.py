"""Reads dlib's serialization of its face recognizer, `dlib_face_recognition_resnet_model_v1.dat`.

The format, as the bytes of that file show it: a whole number is one byte (number of bytes that follow in the low four
bits, sign in the highest) and the number in little-endian order; a number with a fraction is two of these, mantissa and
power of two; a text is its length and its bytes; a flag is the character 0 or 1; a tensor is the version 2, four sizes
and its 32-bit numbers in little-endian order. Layers stand from the input to the output, each as its name, its content,
three flags and three empty tensors.

Nothing here checks the layout: `faceclip.towers.dlib` reads only the published file, which its hash tells.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Layers without weights: the whole numbers that describe them.
_PLAIN = {"relu_": 0, "add_prev_": 0, "max_pool_2": 6, "avg_pool_2": 6}
_SHAPE = 5  # whole numbers of the shape of a part of a tensor: a version and four sizes
_RATES = 4  # learning rates and weight decays of a layer, two each


@dataclass(frozen=True, kw_only=True)
class DlibNetwork:
    """mean: what is subtracted of red, green and blue in 0 … 255 (3,). layers: name and arrays of each layer with
    weights (weights and biases, or gains and biases), from the input to the output."""

    mean: NDArray[np.float32]
    layers: list[tuple[str, tuple[NDArray[np.float32], ...]]]


def parse_dlib_network(data: bytes) -> DlibNetwork:
    """Returns the network in the content of a file that dlib wrote."""
    reader = _Reader(data)
    reader.wholes(1)
    reader.text()  # the loss, with its margin and threshold
    reader.fractions(2)
    # The versions of all layers come first, since each holds the one before it; that of the input, 3, ends them.
    while reader.whole() != 3:
        pass
    reader.text()
    mean = np.array(reader.fractions(3), np.float32)
    reader.wholes(2)  # sides of the input in px
    layers = [_read_layer(reader)]
    reader.wholes(1)  # into how many samples the input turns each picture: stored once, behind the first layer
    while reader.place < len(data):
        layers.append(_read_layer(reader))
    return DlibNetwork(mean=mean, layers=[layer for layer in layers if layer[1]])


class _Reader:
    """Takes values off the front of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, count: int) -> bytes:
        self.place += count
        return self.data[self.place - count : self.place]

    def whole(self) -> int:
        control = self.take(1)[0]
        value = int.from_bytes(self.take(control & 15), "little")
        return -value if control & 0x80 else value

    def wholes(self, count: int) -> list[int]:
        return [self.whole() for _ in range(count)]

    def fractions(self, count: int) -> list[float]:
        pairs = [self.wholes(2) for _ in range(count)]
        return [mantissa * 2.0**power for mantissa, power in pairs]

    def text(self) -> str:
        return self.take(self.whole()).decode("ascii")

    def tensor(self) -> NDArray[np.float32]:
        _, *sizes = self.wholes(5)
        return np.frombuffer(self.take(4 * int(np.prod(sizes))), "<f4").astype(np.float32).reshape(sizes)


def _read_layer(reader: _Reader) -> tuple[str, tuple[NDArray[np.float32], ...]]:
    name = reader.text()
    arrays: tuple[NDArray[np.float32], ...] = ()
    if name in _PLAIN:
        reader.wholes(_PLAIN[name])
    elif name == "con_4":
        values = reader.tensor().reshape(-1)
        reader.wholes(7)  # number of kernels, their height and width, strides, paddings
        _, *kernel = reader.wholes(_SHAPE)
        reader.wholes(_SHAPE)
        reader.fractions(_RATES)
        weights = int(np.prod(kernel))
        arrays = (values[:weights].reshape(kernel), values[weights:])
    elif name == "affine_":
        arrays = tuple(np.split(reader.tensor().reshape(-1), 2))
        reader.wholes(2 * _SHAPE + 1)
    else:  # the last layer, fully connected and without biases
        reader.wholes(2)
        arrays = (reader.tensor()[:, :, 0, 0],)
        reader.wholes(2 * _SHAPE + 1)
        reader.fractions(_RATES)
    reader.take(3)
    for _ in range(3):  # gradient and output of the last training step, and the gradient of the weights
        reader.tensor()
    return name, arrays
