"""Reads dlib's serialization of its face recognizer, `dlib_face_recognition_resnet_model_v1.dat`.

The format, as the bytes of that file show it: a whole number is one byte (number of bytes that follow in the low four
bits, sign in the highest) and the number in little-endian order; a number with a fraction is two of these, mantissa and
power of two; a text is its length and its bytes; a flag is the character 0 or 1; a tensor is the version 2, four sizes
and its 32-bit numbers in little-endian order. Layers stand from the input to the output, each as its name, its content,
three flags and three empty tensors.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from faceclip.errors import CheckpointError
from faceclip.storage.regular import open_regular

MAX_BYTES = 2**27
_LONGEST_NAME = 64
_PLAIN = {
    "relu_": 0,
    "add_prev_": 0,
    "max_pool_2": 6,
    "avg_pool_2": 6,
}  # layers without weights: whole numbers they have


@dataclass(frozen=True, kw_only=True)
class DlibLayer:
    """One layer: name as in the file; arrays in the order of the file (weights and biases, or gains and biases); sizes:
    the whole numbers that describe it (convolution and pooling: window height and width, strides, paddings)."""

    name: str
    arrays: tuple[NDArray[np.float32], ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DlibNetwork:
    """mean: what is subtracted of red, green and blue in 0 … 255 (3,). side: px of the input. layers: from the input to
    the output, tags and shortcuts left out, which hold nothing."""

    mean: NDArray[np.float32]
    side: int
    layers: tuple[DlibLayer, ...]


def read_dlib_network(path: str | Path) -> DlibNetwork:
    """Reads the network in a file that dlib wrote.

    Raises CheckpointError, which names the file, for one that is missing, cut off, or holds another kind of network.
    """
    remedy = "install face_recognition_models again, or give the path of dlib_face_recognition_resnet_model_v1.dat"
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {remedy}") from error
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{path} has more than {MAX_BYTES:,} bytes, which no recognizer of dlib has: {remedy}")
    reader = _Reader(data)
    try:
        return _read_network(reader)
    except (ValueError, IndexError, OverflowError) as error:
        where = f"{path} is no face recognizer of dlib, or is cut off: {error} at byte {reader.place:,}"
        raise CheckpointError(f"{where}; {remedy}") from error


class _Reader:
    """Takes values off the front of bytes. Raises ValueError where the bytes do not fit."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, count: int) -> bytes:
        if count < 0 or self.place + count > len(self.data):
            raise ValueError(f"{count} bytes are expected, {len(self.data) - self.place} are left")
        self.place += count
        return self.data[self.place - count : self.place]

    def whole(self) -> int:
        control = self.take(1)[0]
        count = control & 15
        if not 1 <= count <= 8 or control & 0x70:
            raise ValueError(f"a whole number is expected, found byte {control}")
        value = int.from_bytes(self.take(count), "little")
        return -value if control & 0x80 else value

    def fraction(self) -> float:
        mantissa, power = self.whole(), self.whole()
        return mantissa * 2.0**power

    def text(self) -> str:
        length = self.whole()
        if not 0 <= length <= _LONGEST_NAME:
            raise ValueError(f"a name is expected, found one of {length} characters")
        return self.take(length).decode("ascii")

    def flags(self, count: int) -> None:
        if set(found := self.take(count)) - {ord("0"), ord("1")}:
            raise ValueError(f"{count} flags are expected, found {found!r}")

    def sizes(self) -> tuple[int, ...]:
        found = tuple(self.whole() for _ in range(4))
        if min(found) < 0:
            raise ValueError(f"sizes {found} are negative")
        return found

    def alias(self) -> tuple[int, ...]:
        """Returns the shape of a part of a tensor."""
        if (version := self.whole()) != 1:
            raise ValueError(f"a shape of version 1 is expected, found {version}")
        return self.sizes()

    def tensor(self) -> NDArray[np.float32]:
        if (version := self.whole()) != 2:
            raise ValueError(f"a tensor of version 2 is expected, found {version}")
        sizes = self.sizes()
        count = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        return np.frombuffer(self.take(4 * count), "<f4").astype(np.float32).reshape(sizes)


def _read_network(reader: _Reader) -> DlibNetwork:
    if reader.whole() != 1 or reader.text() != "loss_metric_2":
        raise ValueError("a network trained by dlib's loss_metric is expected")
    for _ in ("margin", "threshold"):
        reader.fraction()
    # The versions of all layers come first, since each holds the one before it; that of the input, 3, ends them.
    while (version := reader.whole()) != 3:
        if version not in (1, 2):
            raise ValueError(f"layers of version 1 or 2 are expected, found {version}")
    if (given := reader.text()) != "input_rgb_image_sized":
        raise ValueError("the input of an RGB picture of fixed size is expected")
    mean = np.array([reader.fraction() for _ in range(3)], np.float32)
    side, width = reader.whole(), reader.whole()
    if side != width or not 1 <= side <= 4096:
        raise ValueError(f"{given} of {side} × {width} is no square of 1 to 4096 px")
    layers = [_read_layer(reader)]
    reader.whole()  # into how many samples the input turns each picture: stored once, behind the first layer
    while reader.place < len(reader.data):
        layers.append(_read_layer(reader))
    return DlibNetwork(mean=mean, side=side, layers=tuple(layers))


def _read_layer(reader: _Reader) -> DlibLayer:
    name = reader.text()
    if name in _PLAIN:
        layer = DlibLayer(name=name, sizes=tuple(reader.whole() for _ in range(_PLAIN[name])))
    elif name == "con_4":
        layer = _read_convolution(reader)
    elif name == "affine_":
        values = reader.tensor()
        gains, biases, _ = reader.alias(), reader.alias(), reader.whole()
        layer = DlibLayer(name=name, arrays=_split(values, (gains[1],), (biases[1],)))
    elif name == "fc_2":
        layer = _read_linear(reader)
    else:
        raise ValueError(f"layer {name!r} is none of a face recognizer's")
    reader.flags(3)
    for _ in range(3):  # gradient and output of the last training step, and the gradient of the weights
        if reader.tensor().size:
            raise ValueError(f"layer {name} holds state of training")
    return layer


def _read_convolution(reader: _Reader) -> DlibLayer:
    values = reader.tensor()
    count, *sizes = (reader.whole() for _ in range(7))
    kernel, bias = reader.alias(), reader.alias()
    for _ in range(4):  # learning rates and weight decays
        reader.fraction()
    if kernel[0] != count or kernel[2:] != tuple(sizes[:2]):
        raise ValueError(f"{count} kernels of {sizes[0]} × {sizes[1]} are expected, found {kernel}")
    return DlibLayer(name="con_4", arrays=_split(values, kernel, (bias[1],)), sizes=tuple(sizes))


def _read_linear(reader: _Reader) -> DlibLayer:
    outputs, inputs = reader.whole(), reader.whole()
    values = reader.tensor()
    reader.alias()
    if sum(reader.alias()):
        raise ValueError("a last layer without bias is expected")
    reader.whole()
    for _ in range(4):
        reader.fraction()
    return DlibLayer(name="fc_2", arrays=_split(values, (inputs, outputs)))


def _split(values: NDArray[np.float32], *shapes: tuple[int, ...]) -> tuple[NDArray[np.float32], ...]:
    """Returns all values of a tensor as arrays of these shapes, one after the other."""
    flat, counts = values.reshape(-1), [int(np.prod(shape)) for shape in shapes]
    if sum(counts) != flat.size:
        raise ValueError(f"{sum(counts)} weights are expected, found {flat.size}")
    parts = np.split(flat, np.cumsum(counts)[:-1])
    return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
