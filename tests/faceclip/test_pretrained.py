"""Towers of open_clip and arcface_torch in our classes."""

import open_clip
import pytest
import torch

from faceclip.errors import CheckpointError, ConfigError
from faceclip.face_encoder import FaceViT
from faceclip.pretrained import image_tower_from_open_clip, load_tower, text_tower_from_open_clip
from faceclip.text_tower import tokenize

SETTINGS = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("quick", [True, False])
def test_same_embeddings_as_open_clip(quick):
    torch.manual_seed(0)
    model = open_clip.CLIP(**SETTINGS, quick_gelu=quick).eval()
    texts = tokenize(["a person in a red hat", "", "größe " * 60])
    text = text_tower_from_open_clip(model, SETTINGS, quick).eval()
    torch.testing.assert_close(text(texts).embedding, model.encode_text(texts), atol=1e-5, rtol=1e-5)
    image = image_tower_from_open_clip(model, SETTINGS, quick).eval()
    pixels = torch.rand(2, 3, 32, 32)
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    deviation = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    expected = model.encode_image((pixels - mean) / deviation)
    torch.testing.assert_close(image(pixels).embedding, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "error", "message"),
    [
        ("open_clip:ViT-Nowhere/openai", "text", ConfigError, "no model 'ViT-Nowhere'"),
        ("open_clip:ViT-B-32/nobody", "text", ConfigError, "no weights 'nobody'"),
        ("open_clip:ViT-B-32/openai", "face", ConfigError, "no face encoder"),
        ("arcface:/nowhere.pth", "face", CheckpointError, "is not a file"),
        ("arcface:/nowhere.pth", "text", ConfigError, "not a text tower"),
        ("tiny/nobody", "face", CheckpointError, "ships no weights"),
    ],
)
def test_names_that_lead_nowhere(name, kind, error, message):
    with pytest.raises(error, match=message):
        load_tower(name, kind)


def test_arcface_weights_of_another_size_are_refused(tmp_path):
    torch.save(FaceViT(image_size=36, width=24, depth=1, heads=2).state_dict(), tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match="do not fit"):
        load_tower(f"arcface:{tmp_path / 'small.pth'}", "face")
