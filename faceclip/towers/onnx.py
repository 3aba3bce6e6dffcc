"""A face recognizer from an ONNX file, such as insightface's `w600k_r50.onnx`, in the place of `FaceViT`.

The identity is the file's output, and the tokens are its last feature map. onnxruntime runs the frozen graph; where a
gradient to the pictures is asked for, torch does, once both agreed on it (`faceclip.towers.onnx_torch`). The
recognizers of insightface's packs are for non-commercial research only.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from google.protobuf.message import DecodeError
from onnx.checker import ValidationError
from torch import Tensor

from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.loading import DAMAGE, StrictlyLoaded
from faceclip.storage.regular import open_regular
from faceclip.towers.face import FaceFeatures, resized_crops, sine_positions
from faceclip.towers.onnx_torch import OnnxGraph, differentiable_graph


class OnnxFaceEncoder(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Aligned face crop → tokens (B, grid², width) and identity (B, embedding_dim), by an ONNX graph.

    The graph is a buffer of bytes, so `save_pretrained`, hashes and copies include it like any weight. `from_onnx`
    makes the encoder.

    Args:
        onnx_bytes: length of the graph. image_size: px of its square input. grid, width: of its last feature map.
        pixel_mean, pixel_scale: its input is (pixel in 0 … 255 − mean) / scale, RGB, as in insightface.
    """

    @register_to_config
    def __init__(
        self,
        onnx_bytes: int,
        image_size: int = 112,
        grid: int = 7,
        width: int = 512,
        embedding_dim: int = 512,
        pixel_mean: float = 127.5,
        pixel_scale: float = 127.5,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("graph", torch.zeros(onnx_bytes, dtype=torch.uint8))
        self.register_buffer("pos_embed", 0.5 * sine_positions(grid, width)[None])
        self._session: tuple[str, onnxruntime.InferenceSession] | None = None
        self._torch: tuple[OnnxGraph | ConfigError] | None = None  # in a tuple: it is no part of the state

    @classmethod
    def from_onnx(cls, path: str | Path) -> "OnnxFaceEncoder":
        """Reads a recognizer's file. Its last map of more than one place becomes a second output.

        Raises:
            CheckpointError: the file is missing or no ONNX graph. ConfigError: a graph that is no face recognizer: not
                one square RGB picture in and one vector out, a fixed batch size, or no feature map.
        """
        try:
            with open_regular(path):
                pass
            model = onnx.load(str(path))
        except (*DAMAGE, DecodeError, ValidationError) as error:
            raise CheckpointError(f"{path} cannot be read as an ONNX file ({error}): is it complete?") from error
        settings = _find_outputs(model, str(path))
        content = np.frombuffer(model.SerializeToString(), np.uint8)
        encoder = cls(onnx_bytes=len(content), **settings)
        encoder.graph.copy_(torch.from_numpy(content.copy()))
        return encoder.eval()

    @property
    def differentiable(self) -> bool:
        """Whether gradients pass to the pictures: torch knows all operators and computes what onnxruntime does. The
        first question costs one pass of each."""
        return isinstance(self._in_torch(), OnnxGraph)

    def forward(self, images: Tensor) -> FaceFeatures:
        """Encodes RGB crops (B, 3, H, W) in [0, 1]; any size is resized. Tokens are normalized over their channels.

        Raises ValueError for another number of dimensions or channels.
        """
        config = self.config
        images = resized_crops(images.float(), config.image_size)
        pixels = (images * 255 - config.pixel_mean) / config.pixel_scale
        if pixels.requires_grad and torch.is_grad_enabled():
            graph = self._in_torch()
            if isinstance(graph, ConfigError):
                raise ConfigError(f"no gradient passes through this ONNX recognizer: {graph}")
            identity, feature_map = graph(pixels)
        else:
            identity, feature_map = (torch.from_numpy(found) for found in self._run(pixels.detach().cpu().numpy()))
        tokens = F.layer_norm(feature_map.flatten(2).transpose(1, 2), (config.width,))
        return FaceFeatures(tokens=tokens.to(self.pos_embed), identity=identity.to(self.pos_embed))

    def _run(self, pixels: np.ndarray) -> list[np.ndarray]:
        session = self._open()
        return session.run(None, {session.get_inputs()[0].name: pixels})

    def _in_torch(self) -> OnnxGraph | ConfigError:
        """Returns the graph in torch on the module's device, or why there is none; built and compared on first use."""
        if self._torch is None:
            try:
                model = onnx.load_model_from_string(self.graph.cpu().numpy().tobytes())
                self._torch = (differentiable_graph(model, self._run),)
            except ConfigError as error:
                self._torch = (error,)
        (found,) = self._torch
        return found.to(self.graph.device) if isinstance(found, OnnxGraph) else found

    def _open(self) -> onnxruntime.InferenceSession:
        """Returns the graph, ready to run on the module's device. It is opened on first use."""
        device = self.graph.device.type
        if self._session is None or self._session[0] != device:
            wanted = ["CUDAExecutionProvider"] * (device == "cuda") + ["CPUExecutionProvider"]
            providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            content = self.graph.cpu().numpy().tobytes()
            self._session = device, onnxruntime.InferenceSession(content, options, providers=providers)
        return self._session[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_session": None, "_torch": None}  # a session cannot be copied; both are made again


def _find_outputs(model: onnx.ModelProto, where: str) -> dict[str, Any]:
    """Adds the last feature map to the outputs; returns the arguments of `OnnxFaceEncoder` that the graph decides."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    wanted = "one square RGB picture (B, 3, S, S) in, one vector (B, E) out"
    if len(inputs) != 1 or len(graph.output) != 1 or len(_shape(inputs[0])) != 4:
        raise ConfigError(f"{where} is no face recognizer ({wanted}): is it a detector?")
    batch, channels, height, width = _shape(inputs[0])
    if channels != 3 or height != width or height is None:
        raise ConfigError(f"{where} takes pictures {(channels, height, width)}; needed is {wanted}")
    if batch is not None:
        raise ConfigError(f"{where} takes {batch} picture(s) at a time: export it with a free batch size")
    del graph.value_info[:]  # what exporters wrote there may be of another batch size
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    maps = [known[name] for node in graph.node for name in node.output if name in known]
    maps = [value for value in maps if len(s := _shape(value)) == 4 and s[1] and (s[2] or 0) > 1 and s[2] == s[3]]
    if not maps:
        raise ConfigError(f"{where} has no feature map whose size is known: its tokens would be missing")
    vector = _shape(graph.output[0])
    graph.output.append(maps[-1])
    embedding = vector[1] if len(vector) == 2 else None
    if not embedding:
        raise ConfigError(f"{where} gives {vector}; needed is {wanted}")
    # insightface's rule: graphs that came from MXNet subtract and scale by themselves.
    first = [node.name for node in graph.node[:8]]
    raw = any(n.startswith(("Sub", "_minus")) for n in first) and any(n.startswith(("Mul", "_mul")) for n in first)
    pixels = {"pixel_mean": 0.0, "pixel_scale": 1.0} if raw else {}
    _, map_width, grid, _ = _shape(maps[-1])
    return {"image_size": height, "grid": grid, "width": map_width, "embedding_dim": embedding} | pixels


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    """Returns the dimensions of a value, None where free."""
    dimensions = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dimensions]
