"""dlib's recognizer as a torch module; its published file comes with the extra `photos`."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError, MissingExtraError
from faceclip.faces.align import ARCFACE_TEMPLATE_112, similarity_between
from faceclip.storage.hashes import module_hash
from faceclip.towers.dlib import CHIP, DlibFaceEncoder, chip_points, installed_file, warp_to_chips
from faceclip.towers.pretrained import load_tower
from faceclip.towers.recognizers import recognizer_facts
from faceclip.towers.text import TextTower


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


published = pytest.mark.skipif(not has("face_recognition_models"), reason="needs the extra photos")


@pytest.fixture(scope="module")
def encoder() -> DlibFaceEncoder:
    return load_tower("dlib", "face")


@pytest.fixture
def pictures() -> torch.Tensor:
    """Smooth 8-bit pictures, as of a camera, in [0, 1]."""
    coarse = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(coarse, (CHIP, CHIP), mode="bicubic").clamp(0, 1) * 255).round() / 255


@published
@pytest.mark.skipif(not has("dlib"), reason="needs dlib-bin")
def test_identities_are_those_of_dlib(encoder, pictures):
    import dlib

    theirs = dlib.face_recognition_model_v1(str(installed_file()))
    chips = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    expected = [list(theirs.compute_face_descriptor(chip)) for chip in chips]
    found = encoder.encode_chips(pictures)
    torch.testing.assert_close(found.identity, torch.tensor(expected), atol=1e-4, rtol=0)


@published
def test_tokens_are_the_last_map_and_gradients_reach_picture_and_points(encoder, pictures):
    images = pictures.requires_grad_()
    points = chip_points(CHIP)[None].clone().requires_grad_()
    found = encoder.encode_chips(warp_to_chips(images, points))
    assert found.tokens.shape == (3, encoder.grid**2, encoder.config.width)
    found.identity.square().sum().backward()
    assert images.grad.abs().amax(dim=(1, 2, 3)).min() > 0 and points.grad.abs().sum() > 0


@published
def test_a_crop_of_any_size_shows_the_chip(encoder):
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    crops = {size: F.interpolate(coarse, (size, size), mode="bilinear") for size in (448, 168, 224)}
    found = {size: encoder(crop).identity for size, crop in crops.items()}
    for size in (448, 224):
        assert (found[size] - found[168]).norm() < 0.05


@published
def test_a_changed_file_is_rejected_by_its_hash(tmp_path):
    data = bytearray(installed_file().read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.dat").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"changed\.dat.*SHA-256"):
        load_tower(f"dlib:{tmp_path / 'changed.dat'}", "face")


@published
def test_a_joint_encoder_over_it_round_trips(encoder, pictures, tmp_path):
    torch.manual_seed(0)
    text = TextTower(width=32, layers=1, heads=2, embed_dim=16)
    model = FaceCLIP.from_components(encoder, text, text, fusion={"layers": 1, "attention_width": 32}).eval()
    model.save_pretrained(tmp_path)
    again = FaceCLIP.from_pretrained(tmp_path).eval()
    assert module_hash(again.face_encoder) == module_hash(encoder)
    first, second = (one.encode(["a", "b", "c"], pictures).tokens.detach() for one in (model, again))
    torch.testing.assert_close(first, second)


@published
def test_facts_say_what_may_be_done_with_it(encoder):
    facts = recognizer_facts("dlib", encoder)
    assert facts.commercial_ok and facts.licence == "CC0-1.0" and facts.image_size == CHIP and facts.channels == "RGB"
    assert facts.differentiable and facts.scale == 256 and abs(facts.mean[0] - 122.782) < 1e-3
    tiny = recognizer_facts("tiny/recognizer", load_tower("tiny/recognizer", "face"))
    assert tiny.commercial_ok and tiny.licence == "Apache-2.0"


def test_points_of_a_chip_are_those_of_a_face():
    matrix = similarity_between(torch.from_numpy(ARCFACE_TEMPLATE_112), chip_points())
    placed = torch.from_numpy(ARCFACE_TEMPLATE_112) @ matrix[:, :2].T + matrix[:, 2]
    assert (placed - chip_points()).norm(dim=1).max() < 0.06 * CHIP
    assert np.hypot(*matrix[:, 0].tolist()) == pytest.approx(150 / 104, abs=0.02)


def test_other_towers_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(ConfigError, match="dlib"):
        load_tower("dlib", "text")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"face_recognition_models.*photos"):
        load_tower("dlib", "face")


def test_other_layouts_are_rejected():
    encoder = DlibFaceEncoder()
    with pytest.raises(ValueError, match="150"):
        encoder.encode_chips(torch.rand(1, 3, 112, 112))
    with pytest.raises(ValueError, match="shape"):
        encoder(torch.rand(3, 112, 112))
