"""A recognizer's ONNX file as the face encoder, with a small graph made on the spot."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.hashes import module_hash
from faceclip.towers.onnx import OnnxFaceEncoder
from faceclip.towers.pretrained import load_tower
from faceclip.towers.text import TextTower
from tests.onnx_graph import CONV, GRID, LINEAR, SIZE, WIDTH, write_recognizer


@pytest.fixture
def file(tmp_path) -> Path:
    return write_recognizer(tmp_path / "recognizer.onnx")


@pytest.fixture
def faces() -> torch.Tensor:
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_identity_and_tokens_are_what_the_graph_computes(file, faces):
    encoder = load_tower(f"onnx:{file}", "face")
    found = encoder(faces)
    map_ = F.conv2d(faces * 2 - 1, torch.from_numpy(CONV), stride=8).relu()  # (255 p − 127.5) / 127.5, RGB
    torch.testing.assert_close(found.identity, map_.flatten(1) @ torch.from_numpy(LINEAR).T, atol=1e-4, rtol=1e-4)
    tokens = F.layer_norm(map_.flatten(2).transpose(1, 2), (WIDTH,))
    torch.testing.assert_close(found.tokens, tokens, atol=1e-3, rtol=1e-3)
    assert encoder.pos_embed.shape == (1, GRID**2, WIDTH) and encoder.pos_embed.abs().max() <= 0.5
    large = F.interpolate(faces, (64, 64), mode="nearest")
    torch.testing.assert_close(encoder(large).identity, found.identity, atol=1e-4, rtol=1e-4)  # resized to the graph's


def test_graphs_of_mxnet_scale_by_themselves(tmp_path, faces):
    encoder = OnnxFaceEncoder.from_onnx(write_recognizer(tmp_path / "raw.onnx", prefix="Sub"))
    map_ = F.conv2d(faces * 255, torch.from_numpy(CONV), stride=8).relu()
    expected = map_.flatten(1) @ torch.from_numpy(LINEAR).T
    torch.testing.assert_close(encoder(faces).identity, expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_joint_encoder_over_it_trains_and_round_trips(file, faces, tmp_path, dtype):
    torch.manual_seed(0)
    towers = [TextTower(width=w, layers=1, heads=2, embed_dim=20) for w in (32, 48)]
    fusion = {"layers": 1, "attention_width": 32, "text_hidden": 32, "face_hidden": 32, "face_heads": 2}
    recognizer = OnnxFaceEncoder.from_onnx(file)
    model = FaceCLIP.from_components(recognizer, *towers, fusion=fusion, joint={"hidden": 16})
    model.freeze_towers()
    model.train().encode(["a hat"] * 3, faces).tokens.square().sum().backward()
    assert model.l.identity_projection.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        expected = model.embed(["a hat"] * 3, faces).joint
    model.save_pretrained(tmp_path / "model")
    again = FaceCLIP.from_pretrained(tmp_path / "model", torch_dtype=dtype)
    assert again.face_encoder.graph.dtype == torch.uint8
    assert torch.equal(again.face_encoder.graph, recognizer.graph)
    assert module_hash(again.face_encoder) == module_hash(recognizer) or dtype != torch.float32
    with torch.no_grad():
        found = copy.deepcopy(again).embed(["a hat"] * 3, faces).joint
    torch.testing.assert_close(found.float(), expected, atol=1e-6 if dtype == torch.float32 else 0.05, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 1}, r"/other\.onnx .*\b1 picture"),
        ({"channels": 1}, r"/other\.onnx .*\(1, 32, 32\)"),
        ({"flat": False}, r"/other\.onnx .*\[None, 8, 4, 4\]"),
    ],
)
def test_graphs_that_are_no_recognizers_are_refused(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        OnnxFaceEncoder.from_onnx(write_recognizer(tmp_path / "other.onnx", **change))


def test_files_that_are_no_graphs_are_refused(tmp_path, file):
    with pytest.raises(CheckpointError, match=r"missing\.onnx"):
        load_tower(f"onnx:{tmp_path / 'missing.onnx'}", "face")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"cut\.onnx"):
        load_tower(f"onnx:{cut}", "face")
    with pytest.raises(ConfigError, match=f"^onnx:{file}: "):
        load_tower(f"onnx:{file}", "text")
    with pytest.raises(ConfigError, match=f"^arcface:{file} .*onnx:{file}"):
        load_tower(f"arcface:{file}", "face")
