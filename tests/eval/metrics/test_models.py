"""Networks of metrics in their published layouts, with small random weights; what is missing is said with a command."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from eval.metrics.models import ClipModel, DinoModel, MissingModelError, locate
from eval.retrieval.search import unit
from faceclip.errors import CheckpointError
from faceclip.towers.text import tokenize

PICTURES = [np.random.default_rng(n).integers(0, 256, (40 + 8 * n, 48, 3)).astype(np.uint8) for n in range(3)]
PIXELS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "eos_token_id": 49407},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return folder


def test_clip_embeds_pictures_and_texts_as_transformers_does(clip_folder):
    model = ClipModel(str(clip_folder))
    pictures, texts = model.pictures(PICTURES), ["a person", "a " + "very " * 100 + "long text"]
    oracle = CLIPModel.from_pretrained(clip_folder).eval()
    with torch.no_grad():
        expected = oracle(input_ids=tokenize(texts), pixel_values=model.pixels(PICTURES))
    np.testing.assert_allclose(unit(pictures), expected.image_embeds, atol=1e-5)
    np.testing.assert_allclose(unit(model.texts(texts)), expected.text_embeds, atol=1e-5)
    assert model.pooled(PICTURES).shape == (3, 16) and model.texts([]).shape == (0, 1)
    facts = model.facts.to_dict()
    assert len(facts["sha256"]) == 64 and "32 px" in facts["preprocessing"] and "77 tokens" in facts["preprocessing"]


def test_preprocessing_keeps_the_centre_and_normalizes(clip_folder):
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 16:48] = 255
    pixels = ClipModel(str(clip_folder)).pixels([image])
    np.testing.assert_allclose(
        pixels.amin(dim=(0, 2, 3)), [(1 - 0.5) / 0.2, (1 - 0.4) / 0.3, (1 - 0.3) / 0.4], rtol=1e-5
    )


@pytest.mark.parametrize(("kind", "config"), [(ViTModel, ViTConfig), (Dinov2Model, Dinov2Config)])
def test_dino_gives_the_class_token(kind, config, tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    model = kind(config(**small, **({"intermediate_size": 32} if kind is ViTModel else {}))).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    mine = DinoModel(str(tmp_path))
    with torch.no_grad():
        expected = model(pixel_values=mine.pixels(PICTURES)).last_hidden_state[:, 0]
    np.testing.assert_allclose(mine.pictures(PICTURES), expected, atol=1e-5)


def test_a_missing_model_is_said_with_the_command_that_gets_it(tmp_path):
    with pytest.raises(MissingModelError, match=r"hf download nobody/no-such-model --revision abc$"):
        ClipModel("nobody/no-such-model@abc")
    with pytest.raises(MissingModelError, match=r"no file or folder"):
        locate(str(tmp_path / "absent"))


def test_a_model_of_another_kind_or_with_lost_weights_is_refused(clip_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json.*'clip'.*vit or dinov2"):
        DinoModel(str(clip_folder))
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in clip_folder.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json.*image_mean"):
        ClipModel(str(broken))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="broken"):
        ClipModel(str(broken))
