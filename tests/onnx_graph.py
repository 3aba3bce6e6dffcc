"""A small graph with the outline of insightface's recognizers."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, WIDTH, GRID, EMBEDDING = 32, 8, 4, 16
RNG = np.random.default_rng(0)
CONV = RNG.normal(size=(WIDTH, 3, 8, 8)).astype(np.float32) * 0.1
LINEAR = RNG.normal(size=(EMBEDDING, WIDTH * GRID**2)).astype(np.float32) * 0.1


def write_recognizer(
    path: Path, *, batch: str | int = "N", channels: int = 3, prefix: str = "Conv", flat: bool = True
) -> Path:
    """Picture → one convolution → ReLU → flatten → linear layer, the outline of insightface's recognizers."""
    conv = np.concatenate([CONV[:, :1]] * channels, axis=1) if channels != 3 else CONV
    nodes = [
        helper.make_node("Conv", ["picture", "conv"], ["map"], name=f"{prefix}_0", strides=[8, 8]),
        helper.make_node("Relu", ["map"], ["positive"], name=f"{'Mul' if prefix == 'Sub' else 'Relu'}_1"),
        helper.make_node("Flatten", ["positive"], ["flat"]),
        helper.make_node("Gemm", ["flat", "linear"], ["683"], transB=1),
    ]
    output = helper.make_tensor_value_info("683", TensorProto.FLOAT, [batch, EMBEDDING])
    if not flat:
        nodes, output = nodes[:2], helper.make_tensor_value_info("positive", TensorProto.FLOAT, ["N", WIDTH, 4, 4])
    graph = helper.make_graph(
        nodes,
        "recognizer",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [batch, channels, SIZE, SIZE])],
        [output],
        [numpy_helper.from_array(conv, "conv"), numpy_helper.from_array(LINEAR, "linear")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path
