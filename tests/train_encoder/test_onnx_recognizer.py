"""Stage 1 on an ONNX recognizer, and what stage 2 says of it."""

import numpy as np
import onnx
import pytest
import torch

from faceclip.encoder import FaceCLIP
from faceclip.towers.image import ImageTower
from faceclip.towers.onnx import OnnxFaceEncoder
from tests.onnx_graph import SIZE, write_recognizer
from tests.stages import SMALL_ENCODER, save_towers
from train_encoder.__main__ import main as train_encoder
from train_generator.__main__ import main as train_generator
from train_generator.precision import read_references


def test_the_joint_encoder_is_trained_on_it(tiny_dataset, tmp_path, capsys):
    towers = [word for word in save_towers(tmp_path / "towers") if not word.startswith("towers.recognizer=")]
    file = write_recognizer(tmp_path / "recognizer.onnx")
    model = onnx.load(str(file))
    model.graph.node[1].op_type = "Softplus"  # torch does not compute it here: no gradient
    onnx.save(model, str(file))
    words = [
        f"data={tiny_dataset}",
        f"cache={tmp_path / 'cache'}",
        f"out={tmp_path / 'run'}",
        *towers,
        *SMALL_ENCODER,
        f"towers.recognizer=onnx:{file}",
        "trainer.steps=2",
        "trainer.batch_size=4",
        "trainer.num_threads=1",
        "trainer.validate_every=0",
        "trainer.best_metric=null",
        "validation_queries=8",
        "trainer.device=cpu",
    ]
    assert train_encoder(words) == 0, capsys.readouterr()
    model = FaceCLIP.from_pretrained(tmp_path / "run" / "export")
    assert isinstance(model.face_encoder, OnnxFaceEncoder)
    face = torch.rand(1, 3, SIZE, SIZE)
    expected = OnnxFaceEncoder.from_onnx(file)(face).identity
    torch.testing.assert_close(model.encode(["a hat"], face).identity, expected)
    tower = ImageTower(image_size=32, patch_size=8, width=16, layers=1, heads=2, embed_dim=8).eval()
    found = read_references(model, tower.to(torch.bfloat16), face)  # an ONNX graph has no parameters
    torch.testing.assert_close(torch.from_numpy(found["identity"]), expected)
    assert found["image_tokens"].shape[-1] == 16 and np.isfinite(found["image_tokens"]).all()

    for loss in ("identity", "sampled_identity"):
        generator = [f"encoder={tmp_path / 'run' / 'export'}", "loss.identity=0", "loss.sampled_identity=0"]
        assert train_generator([f"data={tiny_dataset}", *generator, f"loss.{loss}=1", f"out={tmp_path / 'two'}"]) == 2
        assert f"loss.{loss} needs the gradient of the recognizer" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["onnx", "arcface"])
def test_a_missing_file_is_named(tiny_dataset, tmp_path, capsys, source):
    words = [f"data={tiny_dataset}", f"towers.recognizer={source}:{tmp_path / 'gone'}", f"out={tmp_path / 'run'}"]
    assert train_encoder(words) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().err
