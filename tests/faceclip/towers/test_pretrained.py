"""Towers of open_clip and arcface_torch in our classes."""

import json

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from faceclip.errors import CheckpointError, ConfigError
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.pretrained import image_tower_from_open_clip, load_tower, text_tower_from_open_clip
from faceclip.towers.text import tokenize

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


@torch.no_grad()
@pytest.mark.parametrize("tag", ["laion2b_s32b_b82k", "openai"])
def test_pixels_are_normalized_as_the_weights_need_it(tag):
    torch.manual_seed(0)
    model = open_clip.CLIP(**SETTINGS).eval()
    # What open_clip's factory does for this tag, at a small size and without its weights.
    settings = merge_preprocess_dict(PreprocessCfg(size=32), open_clip.get_pretrained_cfg("ViT-L-14", tag))
    open_clip.set_model_preprocess_cfg(model, settings)
    picture = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    expected = model.encode_image(transform(Image.fromarray(picture))[None])
    tower = image_tower_from_open_clip(model, SETTINGS, False).eval()
    found = tower(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255).embedding
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_image_tower_keeps_its_normalization_and_older_ones_have_openais(tmp_path):
    sizes = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "heads": 2, "embed_dim": 8}
    ImageTower(**sizes, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).save_pretrained(tmp_path)
    config = load_tower(str(tmp_path), "image").config
    assert list(config.mean) == [0.5, 0.5, 0.5] and list(config.std) == [0.25, 0.25, 0.25]
    older = json.loads((tmp_path / "config.json").read_text())
    del older["mean"], older["std"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    config = load_tower(str(tmp_path), "image").config
    assert tuple(config.mean) == open_clip.OPENAI_DATASET_MEAN and tuple(config.std) == open_clip.OPENAI_DATASET_STD


@pytest.mark.parametrize("wrong", [{"mean": (0.5,)}, {"std": (0.5, 0.5, 0.0)}, {"std": (0.5, 0.5)}])
def test_a_normalization_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"^mean and std .*\(0\.5,"):
        ImageTower(image_size=16, patch_size=8, width=32, layers=1, heads=2, embed_dim=8, **wrong)


@pytest.mark.parametrize(
    ("name", "kind", "error", "message"),
    [
        ("open_clip:ViT-Nowhere/openai", "text", ConfigError, "^open_clip:ViT-Nowhere/openai: .*'ViT-Nowhere'"),
        ("open_clip:ViT-B-32/nobody", "text", ConfigError, "^open_clip:ViT-B-32/nobody: .*'nobody'.*openai"),
        ("open_clip:ViT-B-32/openai", "face", ConfigError, "^open_clip:ViT-B-32/openai: .*arcface:FILE, onnx:FILE"),
        (
            "open_clip:ViT-L-14/openai",
            "text",
            ConfigError,
            "^open_clip:ViT-L-14/openai: .*'openai' .*ViT-L-14-quickgelu$",
        ),
        ("open_clip:ViT-L-14-quickgelu/laion2b_s32b_b82k", "text", ConfigError, "'laion2b_s32b_b82k'; .*openai"),
        ("open_clip:roberta-ViT-B-32", "text", ConfigError, "^open_clip:roberta-ViT-B-32: "),
        ("arcface:/nowhere.pth", "face", CheckpointError, r"^/nowhere\.pth "),
        ("arcface:/nowhere.pth", "text", ConfigError, r"^arcface:/nowhere\.pth: "),
        ("tiny/nobody", "face", CheckpointError, "'tiny/nobody'; .*tiny/recognizer"),
    ],
)
def test_names_that_lead_nowhere(name, kind, error, message):
    with pytest.raises(error, match=message):
        load_tower(name, kind)


def test_weights_that_cannot_be_fetched_are_named(monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no network")))
    with pytest.raises(CheckpointError, match=r"^open_clip:ViT-B-32-quickgelu/openai: .*no network"):
        load_tower("open_clip:ViT-B-32-quickgelu/openai", "text")


def test_arcface_weights_whose_sizes_contradict_each_other_are_refused(tmp_path):
    state = FaceViT(image_size=36, width=24, depth=1, heads=2).state_dict()
    torch.save(state | {"feature.0.weight": torch.zeros(24, 24)}, tmp_path / "small.pth")
    with pytest.raises(CheckpointError, match=r"(?s)small\.pth.*feature\.0\.weight"):
        load_tower(f"arcface:{tmp_path / 'small.pth'}", "face")


WEIGHTS = "diffusion_pytorch_model.safetensors"


def _change_state(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def _change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


DAMAGES = {
    "one tensor missing": (lambda d: _change_state(d, lambda s: s.pop("norm.weight")), "1 missing: norm.weight"),
    "one too many": (lambda d: _change_state(d, lambda s: s.update(x=torch.zeros(1))), "1 unexpected: x"),
    "misshapen": (lambda d: _change_state(d, lambda s: s.update({"norm.weight": torch.zeros(2)})), "norm.weight"),
    "fewer blocks": (lambda d: _change_config(d, depth=1), "unexpected: blocks.1.attn"),
    "another class": (lambda d: _change_config(d, _class_name="TextTower"), "config.json is that of 'TextTower'"),
    "impossible": (lambda d: _change_config(d, heads=5), "not a multiple of 5 heads"),
    "not a number": (lambda d: _change_config(d, width="big"), "cannot be loaded as FaceViT"),
    "no settings": (lambda d: (d / "config.json").write_text("[]"), r"config\.json .*list"),
    "cut settings": (lambda d: (d / "config.json").write_text('{"a":'), r"FaceViT .*config\.json .*JSON"),
    "without settings": (lambda d: (d / "config.json").unlink(), r"FaceViT .*config\.json"),
    "cut weights": (lambda d: (d / WEIGHTS).write_bytes((d / WEIGHTS).read_bytes()[:-9]), r"FaceViT .*\.safetensors"),
    "without weights": (lambda d: (d / WEIGHTS).unlink(), r"FaceViT .*\.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_refused(tmp_path, damage):
    folder = tmp_path / "tower"
    FaceViT(image_size=36, width=24, depth=2, heads=2).save_pretrained(folder)
    assert not any(parameter.is_meta for parameter in load_tower(str(folder), "face").parameters())
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=message) as refusal:
        load_tower(str(folder), "face")
    assert str(folder) in str(refusal.value) and "FaceViT.save_pretrained" in str(refusal.value)


def test_a_tower_of_another_kind_is_refused():
    with pytest.raises(CheckpointError, match=r"FaceViT .*config\.json .*'TextTower'"):
        load_tower("tiny/text_tower_l", "face")
