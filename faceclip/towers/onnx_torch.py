"""The graph of an ONNX recognizer computed by torch, so that gradients pass to the picture.

Covers the operators of face recognizers: arcface_torch's exports (insightface's packs, AuraFace) and networks that
came from Keras (GhostFaceNet). onnxruntime stays the reference: `differentiable_graph` compares both before it gives
the graph out.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from faceclip.errors import ConfigError

Operator = Callable[[list[Any], Mapping[str, Any]], Tensor]
TOLERANCE = 1e-3  # of the largest output


class OnnxGraph(nn.Module):
    """A graph with one input, in float32; its weights are buffers. Raises ConfigError for an operator it does not
    know."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        graph = model.graph
        unknown = sorted({node.op_type for node in graph.node} - OPERATORS.keys() - {"Constant"})
        if unknown:
            raise ConfigError(f"the graph has operators without a gradient here: {', '.join(unknown)}")
        self.names: dict[str, str] = {}
        for tensor in graph.initializer:
            self._keep(tensor.name, tensor)
        self.nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
        for node in graph.node:
            attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
            if node.op_type == "Constant":
                self._keep(node.output[0], attributes["value"])
            else:
                self.nodes.append((node.op_type, list(node.input), node.output[0], attributes))
        self.input = next(value.name for value in graph.input if value.name not in self.names)
        self.outputs = [value.name for value in graph.output]

    def _keep(self, name: str, tensor: onnx.TensorProto) -> None:
        values = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        self.names[name] = f"tensor_{len(self.names)}"
        self.register_buffer(self.names[name], values.float() if values.is_floating_point() else values)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Returns all outputs of the graph for its input."""
        known: dict[str, Any] = {name: self.get_buffer(place) for name, place in self.names.items()}
        known |= {"": None, self.input: pixels.float()}
        with torch.autocast(pixels.device.type, enabled=False):
            for kind, inputs, output, attributes in self.nodes:
                known[output] = OPERATORS[kind]([known[name] for name in inputs], attributes)
        return [known[name] for name in self.outputs]


def differentiable_graph(model: onnx.ModelProto, reference: Callable[[np.ndarray], list[np.ndarray]]) -> OnnxGraph:
    """Returns the graph in torch, after its outputs for two random pictures agreed with those of `reference`.

    Raises ConfigError for an operator that is not known, and where the outputs differ.
    """
    graph = OnnxGraph(model).eval()
    size = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][2:]
    pixels = np.random.default_rng(0).normal(0, 0.5, (2, 3, *size)).astype(np.float32)
    with torch.no_grad():
        found = graph(torch.from_numpy(pixels))
    for number, (ours, theirs) in enumerate(zip(found, reference(pixels), strict=True)):
        limit = TOLERANCE * max(float(np.abs(theirs).max()), 1e-6)
        if ours.shape != theirs.shape or float(np.abs(ours.numpy() - theirs).max()) > limit:
            raise ConfigError(f"output {number} of the graph in torch differs from onnxruntime's")
    return graph


def _pads(attributes: Mapping[str, Any], x: Tensor, kernel: list[int], strides: list[int]) -> list[int]:
    """Returns padding left, right, top, bottom as for `F.pad`."""
    automatic = attributes.get("auto_pad", b"NOTSET").decode()
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        found: list[int] = []
        for size, side, stride in zip(x.shape[:1:-1], kernel[::-1], strides[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + side - size, 0)
            small, large = total // 2, total - total // 2
            found += [small, large] if automatic == "SAME_UPPER" else [large, small]
        return found
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    return [left, right, top, bottom]


def _convolution(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    strides, dilations = list(attributes.get("strides", [1, 1])), list(attributes.get("dilations", [1, 1]))
    reach = [(side - 1) * spread + 1 for side, spread in zip(weight.shape[2:], dilations, strict=True)]
    x = F.pad(x, _pads(attributes, x, reach, strides))
    return F.conv2d(x, weight, bias, strides, 0, dilations, attributes.get("group", 1))


def _pool(inputs: list[Any], attributes: Mapping[str, Any], *, average: bool) -> Tensor:
    kernel, strides = list(attributes["kernel_shape"]), list(attributes.get("strides", [1, 1]))
    pads = _pads(attributes, inputs[0], kernel, strides)
    rounded = bool(attributes.get("ceil_mode", 0))
    if average:
        if any(pads) and not attributes.get("count_include_pad", 0):
            ones = F.pad(torch.ones_like(inputs[0][:1, :1]), pads)
            return F.avg_pool2d(F.pad(inputs[0], pads), kernel, strides, ceil_mode=rounded) / F.avg_pool2d(
                ones, kernel, strides, ceil_mode=rounded
            )
        return F.avg_pool2d(F.pad(inputs[0], pads), kernel, strides, ceil_mode=rounded)
    return F.max_pool2d(F.pad(inputs[0], pads, value=-torch.inf), kernel, strides, ceil_mode=rounded)


def _normalization(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    x, weight, bias, mean, variance = inputs
    return F.batch_norm(x, mean, variance, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _linear(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    a, b, c = (*inputs, None)[:3]
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def _flatten(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    rows = int(np.prod(inputs[0].shape[: attributes.get("axis", 1)]))
    return inputs[0].reshape(rows, -1)


def _slope(inputs: list[Any], _: Mapping[str, Any]) -> Tensor:
    return torch.where(inputs[0] < 0, inputs[0] * inputs[1], inputs[0])


def _clip(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    x, low, high = (*inputs, None, None)[:3]
    low = attributes.get("min") if low is None else low
    high = attributes.get("max") if high is None else high
    return torch.clamp(x, None if low is None else float(low), None if high is None else float(high))


def _axes(inputs: list[Any], attributes: Mapping[str, Any]) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return [int(axis) for axis in inputs[1]]
    return list(attributes["axes"]) if "axes" in attributes else None


def _mean(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    axes = _axes(inputs, attributes) or list(range(inputs[0].ndim))
    return inputs[0].mean(dim=axes, keepdim=bool(attributes.get("keepdims", 1)))


def _squeeze(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    axes = _axes(inputs, attributes)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    x, axes = inputs[0], _axes(inputs, attributes) or []
    total = x.ndim + len(axes)
    for axis in sorted(axis % total for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _reshape(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    x, sizes = inputs[0], [int(size) for size in inputs[1]]
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)])


def _pad(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    pads = [int(pad) for pad in (inputs[1] if len(inputs) > 1 else attributes["pads"])]
    half = len(pads) // 2
    sides = [side for axis in reversed(range(half)) for side in (pads[axis], pads[axis + half])]
    value = float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else float(attributes.get("value", 0.0))
    return F.pad(inputs[0], sides, value=value)


OPERATORS: dict[str, Operator] = {
    "Add": lambda x, _: x[0] + x[1],
    "AveragePool": lambda x, a: _pool(x, a, average=True),
    "BatchNormalization": _normalization,
    "Clip": _clip,
    "Concat": lambda x, a: torch.cat(x, dim=a["axis"]),
    "Conv": _convolution,
    "Div": lambda x, _: x[0] / x[1],
    "Dropout": lambda x, _: x[0],
    "Flatten": _flatten,
    "Gemm": _linear,
    "GlobalAveragePool": lambda x, _: x[0].mean(dim=(2, 3), keepdim=True),
    "HardSigmoid": lambda x, a: (a.get("alpha", 0.2) * x[0] + a.get("beta", 0.5)).clamp(0, 1),
    "Identity": lambda x, _: x[0],
    "LeakyRelu": lambda x, a: F.leaky_relu(x[0], a.get("alpha", 0.01)),
    "MatMul": lambda x, _: x[0] @ x[1],
    "MaxPool": lambda x, a: _pool(x, a, average=False),
    "Mul": lambda x, _: x[0] * x[1],
    "PRelu": _slope,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Relu": lambda x, _: F.relu(x[0]),
    "Reshape": _reshape,
    "Sigmoid": lambda x, _: torch.sigmoid(x[0]),
    "Softmax": lambda x, a: x[0].softmax(dim=a.get("axis", -1)),
    "Sqrt": lambda x, _: x[0].sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda x, _: x[0] - x[1],
    "Tanh": lambda x, _: torch.tanh(x[0]),
    "Transpose": lambda x, a: x[0].permute(list(a["perm"])),
    "Unsqueeze": _unsqueeze,
}
