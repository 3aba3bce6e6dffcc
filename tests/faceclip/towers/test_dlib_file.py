"""dlib's serialization, with a small network that the test writes in that format."""

import math

import numpy as np
import pytest

from faceclip.errors import CheckpointError
from faceclip.towers.dlib import DlibFaceEncoder
from faceclip.towers.dlib_file import parse_dlib_network

ROOT = "dlib_face_recognition_resnet_model_v1.dat"
MEAN = (122.782, 117.001, 104.298)


def whole(value: int) -> bytes:
    count = max(1, (abs(value).bit_length() + 7) // 8)
    return bytes([count | (0x80 if value < 0 else 0)]) + abs(value).to_bytes(count, "little")


def fraction(value: float) -> bytes:
    mantissa, power = math.frexp(value)
    return whole(int(mantissa * 2**24)) + whole(power - 24)


def text(value: str) -> bytes:
    return whole(len(value)) + value.encode()


def shape(*sizes: int) -> bytes:
    return b"".join(whole(size) for size in sizes)


def tensor(values: np.ndarray, *sizes: int) -> bytes:
    return whole(2) + shape(*sizes) + values.astype("<f4").tobytes()


NO_STATE = b"110" + 3 * tensor(np.zeros(0), 0, 0, 0, 0)


def convolution(kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> bytes:
    flat = np.concatenate([kernel.ravel(), bias])
    sizes = (len(kernel), *kernel.shape[2:], stride, stride, padding, padding)
    parts = whole(1) + shape(*kernel.shape) + whole(1) + shape(1, len(bias), 1, 1)
    return text("con_4") + tensor(flat, len(flat), 1, 1, 1) + shape(*sizes) + parts + 4 * fraction(1.0)


def network(kernel, bias, gain, offset, head) -> bytes:
    affine = np.concatenate([gain, offset])
    one = whole(1) + shape(1, len(gain), 1, 1)
    layers = [
        convolution(kernel, bias, 2, 0) + NO_STATE + whole(1),
        text("affine_") + tensor(affine, len(affine), 1, 1, 1) + one + one + whole(0) + NO_STATE,
        text("relu_") + NO_STATE,
        text("max_pool_2") + shape(3, 3, 2, 2) + shape(0, 0) + NO_STATE,
        text("fc_2")
        + whole(head.shape[1])
        + whole(head.shape[0])
        + tensor(head, *head.shape, 1, 1)
        + (whole(1) + shape(*head.shape, 1, 1))
        + (whole(1) + shape(0, 0, 0, 0))
        + whole(1)
        + 4 * fraction(1.0)
        + NO_STATE,
    ]
    start = whole(1) + text("loss_metric_2") + fraction(0.04) + fraction(0.6) + 5 * whole(2) + 2 * whole(1) + whole(3)
    image = text("input_rgb_image_sized") + b"".join(fraction(value) for value in MEAN) + whole(150) + whole(150)
    return start + image + b"".join(layers)


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    sizes = {"kernel": (4, 3, 7, 7), "bias": (4,), "gain": (4,), "offset": (4,), "head": (4, 2)}
    return {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def test_a_network_of_dlib_is_read_as_it_was_written(arrays):
    found = parse_dlib_network(network(**arrays))
    np.testing.assert_allclose(found.mean, MEAN, rtol=1e-6)
    assert [name for name, _ in found.layers] == ["con_4", "affine_", "fc_2"]
    read = [array for _, own in found.layers for array in own]
    for array, expected in zip(read, arrays.values(), strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_other_missing_and_damaged_files_are_named(arrays, tmp_path, content):
    path = tmp_path / ROOT
    if content is not None:
        path.write_bytes(content + network(**arrays))
    with pytest.raises(CheckpointError, match=ROOT):
        DlibFaceEncoder.from_dlib(path)
    with pytest.raises(CheckpointError, match=tmp_path.name):
        DlibFaceEncoder.from_dlib(tmp_path)
