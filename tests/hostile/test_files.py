"""Files in the place of others that hang, nest without end or hold what no reader should follow: typed errors."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image, PngImagePlugin

from eval.benchmark.references import read_groups
from eval.benchmark.suite import read_prompts
from faceclip.errors import CheckpointError, DataError, FaceClipError, UnreadableImageError
from faceclip.published.files import read_directory
from faceclip.storage.files import read_json
from faceclip.storage.folders import MANIFEST, verify
from faceclip.storage.regular import parse_json, read_regular
from faceclip.towers.onnx import OnnxFaceEncoder
from makeup_plugin.marking.provenance import JSON_KEY, read_provenance

READERS: dict[str, Callable[[Path], Any]] = {
    "a.json": read_json,
    "a.png": read_provenance,
    "a.onnx": OnnxFaceEncoder.from_onnx,
    "prompts.txt": read_prompts,
    "groups.csv": read_groups,
    "a.safetensors": lambda path: read_directory(path.parent, path.name),
}


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("name", list(READERS))
@pytest.mark.timeout(60)
def test_readers_of_files_wait_for_nobody(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(FaceClipError, match=str(path)):
        READERS[name](path)


def test_json_that_nests_without_end(tmp_path: Path) -> None:
    path, deep = tmp_path / "a.json", '{"a":' + "[" * 100_000
    with pytest.raises(ValueError, match="nested"):
        parse_json(deep)
    path.write_text(deep)
    with pytest.raises(DataError, match=str(path)):
        read_json(path)
    (tmp_path / MANIFEST).write_text(deep)
    assert MANIFEST in (verify(tmp_path) or "")
    (tmp_path / MANIFEST).write_text(json.dumps({"sha256": {"state": "0" * 64}}))
    os.mkfifo(tmp_path / "state")
    assert "state" in (verify(tmp_path) or "")


def test_files_have_a_cap(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_regular(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 4"):
        read_regular(tmp_path / "a", 4)


def test_provenance_of_strange_pictures(tmp_path: Path) -> None:
    for name, text in (("deep.png", "[" * 100_000), ("bomb.png", "x" * 10_000_000)):
        info = PngImagePlugin.PngInfo()
        info.add_text(JSON_KEY, text, zip=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, pnginfo=info)
    assert read_provenance(tmp_path / "deep.png") is None
    with pytest.raises(UnreadableImageError, match=r"bomb\.png"):
        read_provenance(tmp_path / "bomb.png")
    whole = io.BytesIO()
    Image.new("RGB", (4, 4)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:40])
    with pytest.raises(UnreadableImageError, match=r"cut\.png"):
        read_provenance(tmp_path / "cut.png")


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret", "link", "missing"])
def test_weights_of_an_onnx_graph_lie_nowhere_else(tmp_path: Path, place: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(4096))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", place), ("offset", "0"), ("length", "64")):
        weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 112, 112]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:], [weight])
    (folder / "a.onnx").write_bytes(onnx.ModelProto.SerializeToString(helper.make_model(graph)))
    with pytest.raises(CheckpointError, match=r"a\.onnx"):
        OnnxFaceEncoder.from_onnx(folder / "a.onnx")
