"""ONNX recognizers in torch: every operator against onnxruntime, gradients, and what cannot be computed."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from faceclip.errors import ConfigError
from faceclip.storage.hashes import module_hash
from faceclip.towers.onnx import OnnxFaceEncoder
from faceclip.towers.onnx_torch import OPERATORS, OnnxGraph, differentiable_graph
from tests.onnx_graph import SIZE, write_recognizer

RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# Operator, its constant inputs behind the picture (N, 3, 8, 8), and its attributes.
CASES = [
    ("Add", [numbers(3, 1, 1)], {}),
    ("Sub", [numbers(1, 3, 8, 8)], {}),
    ("Mul", [numbers(3, 1, 1)], {}),
    ("Div", [np.abs(numbers(1)) + 1], {}),
    ("AveragePool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 1, 0, 1], "count_include_pad": 1}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("BatchNormalization", [numbers(3), numbers(3), numbers(3), np.abs(numbers(3)) + 0.1], {"epsilon": 2e-5}),
    ("Clip", [np.float32(-0.3), np.float32(0.4)], {}),
    ("Conv", [numbers(4, 3, 3, 3), numbers(4)], {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
    ("Conv", [numbers(3, 1, 3, 3)], {"group": 3, "dilations": [2, 2]}),
    ("Conv", [numbers(4, 3, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [numbers(4, 3, 4, 4)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Dropout", [], {}),
    ("Flatten", [], {"axis": 1}),
    ("Flatten", [], {"axis": 2}),
    ("GlobalAveragePool", [], {}),
    ("HardSigmoid", [], {"alpha": 0.3}),
    ("Identity", [], {}),
    ("LeakyRelu", [], {"alpha": 0.2}),
    ("MatMul", [numbers(8, 5)], {}),
    ("PRelu", [numbers(3, 1, 1)], {}),
    ("Pad", [whole(0, 0, 1, 0, 0, 0, 2, 3), np.float32(0.5)], {}),
    ("ReduceMean", [], {"axes": [2, 3], "keepdims": 0}),
    ("Relu", [], {}),
    ("Reshape", [whole(0, -1, 4)], {}),
    ("Sigmoid", [], {}),
    ("Softmax", [], {"axis": 1}),
    ("Tanh", [], {}),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Unsqueeze", [whole(2)], {}),
]


def graph_of(nodes: list, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"picture": pixels})


@pytest.mark.parametrize(
    ("kind", "constants", "attributes"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_operators_are_those_of_onnxruntime(kind, constants, attributes):
    named = {f"constant {number}": value for number, value in enumerate(constants)}
    model = graph_of([helper.make_node(kind, ["picture", *named], ["out"], **attributes)], named)
    pixels = numbers(2, 3, 8, 8)
    (found,), (expected,) = OnnxGraph(model)(torch.from_numpy(pixels)), run(model, pixels)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=1e-5)


def test_operators_behind_others_are_those_of_onnxruntime():
    nodes = [
        helper.make_node("ReduceMean", ["picture"], ["mean"], axes=[3], keepdims=1),
        helper.make_node("Squeeze", ["mean", "last"], ["flat"]),
        helper.make_node("Concat", ["flat", "flat"], ["both"], axis=1),
        helper.make_node("Flatten", ["both"], ["row"]),
        helper.make_node("Gemm", ["row", "weight", "bias"], ["linear"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Mul", ["linear", "linear"], ["square"]),
        helper.make_node("Sqrt", ["square"], ["out"]),
    ]
    model = graph_of(nodes, {"last": whole(3), "weight": numbers(5, 48), "bias": numbers(5)})
    pixels = numbers(2, 3, 8, 8)
    (found,), (expected,) = OnnxGraph(model)(torch.from_numpy(pixels)), run(model, pixels)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5, rtol=1e-4)
    tried = {case[0] for case in CASES} | {node.op_type for node in nodes}
    assert tried == set(OPERATORS)


def test_gradients_reach_the_picture_and_values_stay(tmp_path):
    encoder = OnnxFaceEncoder.from_onnx(write_recognizer(tmp_path / "recognizer.onnx"))
    names = list(encoder.state_dict())
    before = module_hash(encoder)
    pixels = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    plain = encoder(pixels)
    moved = pixels.clone().requires_grad_()
    found = encoder(moved)
    torch.testing.assert_close(found.identity.detach(), plain.identity, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.tokens.detach(), plain.tokens, atol=1e-4, rtol=1e-4)
    found.identity[:, 0].sum().backward()
    step = 1e-2 * moved.grad / moved.grad.norm()
    rise = (encoder(pixels + step).identity - encoder(pixels - step).identity)[:, 0].sum() / 2
    assert rise.item() == pytest.approx((moved.grad * step).sum().item(), rel=0.05)
    assert encoder.differentiable and list(encoder.state_dict()) == names and module_hash(encoder) == before


def test_unknown_operators_leave_a_recognizer_without_gradient(tmp_path):
    path = write_recognizer(tmp_path / "recognizer.onnx")
    model = onnx.load(str(path))
    model.graph.node[1].op_type = "Softplus"
    onnx.save(model, str(path))
    encoder = OnnxFaceEncoder.from_onnx(path)
    pixels = torch.rand(1, 3, SIZE, SIZE)
    assert not encoder.differentiable and encoder(pixels).identity.isfinite().all()
    with pytest.raises(ConfigError, match="Softplus"):
        encoder(pixels.requires_grad_())


def test_a_graph_that_computes_something_else_is_refused():
    model = graph_of([helper.make_node("Relu", ["picture"], ["out"])], {})
    with pytest.raises(ConfigError, match="output 0"):
        differentiable_graph(model, lambda pixels: [np.maximum(pixels, 0.1)])
