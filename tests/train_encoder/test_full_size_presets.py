"""Presets `l14` and `bigg14` without their weights: names that open_clip knows, and shapes on the meta device."""

import functools
from dataclasses import replace

import open_clip
import pytest
import torch
from torch import Tensor, nn

from faceclip.encoder import FaceCLIP, FaceCLIPEncoder
from faceclip.published.checkpoint import CONFIG
from faceclip.towers.face import FaceViT
from faceclip.towers.pretrained import image_tower_from_open_clip, load_tower, text_tower_from_open_clip
from faceclip.training import parse_config
from train_encoder.config import PRESETS, EncoderConfig
from train_encoder.towers_io import Towers

BATCH = 2
PROMPTS = ["a person in a red hat", ""]


def config_of(preset: str) -> EncoderConfig:
    return parse_config(EncoderConfig, ["--preset", preset, "data=somewhere"], presets=PRESETS)


def open_clip_names(preset: str) -> dict[str, tuple[str, str]]:
    """Model and tag of each tower that open_clip gives."""
    names = {tower: name.split(":") for tower, name in vars(config_of(preset).towers).items()}
    assert [tower for tower, (source, _) in names.items() if source == "arcface"] == ["recognizer"]
    return {tower: tuple(rest.split("/")) for tower, (source, rest) in names.items() if source == "open_clip"}


@functools.cache
def towers_of(preset: str) -> Towers:
    """The preset's towers on the meta device, sized by open_clip's own configurations."""
    towers: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for tower, (name, _) in open_clip_names(preset).items():
            settings = open_clip.get_model_config(name)
            convert = image_tower_from_open_clip if tower == "image" else text_tower_from_open_clip
            model = open_clip.create_model(name, device="meta")
            towers[tower] = convert(model, settings, settings.get("quick_gelu", False)).eval()
        return Towers(recognizer=FaceViT().eval(), **towers)


@functools.cache
def joint_encoder(preset: str) -> FaceCLIP:
    config, towers = config_of(preset), towers_of(preset)
    with torch.device("meta"):
        return FaceCLIP.from_components(
            towers.recognizer, towers.text_l, towers.text_g, fusion=vars(config.fusion), joint=vars(config.heads)
        ).eval()


@functools.cache
def published_encoder() -> FaceCLIP:
    with torch.device("meta"):
        return FaceCLIP(**CONFIG).eval()


def faces(given: bool) -> Tensor | None:
    return torch.rand(BATCH, 3, 448, 448) if given else None


@pytest.mark.parametrize(("name", "processes", "queries"), [("l14", 1, 4096), ("bigg14", 8, 32768)])
def test_they_parse(name, processes, queries):
    config = config_of(name)
    assert (config.fusion.layers, config.fusion.attention_width) == (6, 1024)  # as published
    assert config.trainer.precision == "bf16"
    assert config.trainer.batch_size * config.trainer.accumulate * config.sampling.images * processes == queries


def test_the_published_encoder_has_what_its_preset_leaves_out():
    config = config_of("faceclip")
    assert config.init == "ByteDance/FaceCLIP" and config.cached_text and not config.train_identity
    assert config.trainer.batch_size * config.trainer.accumulate * config.sampling.images == 1024
    # All else that describes an encoder comes with it.
    usual = EncoderConfig()
    assert config.fusion == usual.fusion and replace(config.towers, image=usual.towers.image) == usual.towers
    source, _, rest = config.towers.image.partition(":")
    model, _, tag = rest.partition("/")
    assert source == "open_clip" and tag in open_clip.list_pretrained_tags_by_model(model)
    assert open_clip.get_model_config(model)["embed_dim"] == CONFIG["text_g"]["embed_dim"]  # one space
    assert (CONFIG["text_l"]["width"] + CONFIG["text_g"]["width"]) % config.heads.heads == 0


@pytest.mark.parametrize("preset", ["l14", "bigg14"])
def test_open_clip_has_the_towers_and_their_weights(preset):
    names = open_clip_names(preset)
    assert sorted(names) == ["image", "text_g", "text_l"]
    assert names["image"] == names["text_g"]  # one space
    for model, tag in names.values():
        assert model in open_clip.list_models()
        assert tag in open_clip.list_pretrained_tags_by_model(model)
        # Weights trained with the one activation are wrong in a model with the other.
        trained_with = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False))
        assert trained_with == open_clip.get_model_config(model).get("quick_gelu", False), (model, tag)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("preset", "width_g", "clip"), [("l14", 768, 768), ("bigg14", 1280, 1280)])
def test_shapes_of_the_joint_encoder(preset, width_g, clip, given):
    model = joint_encoder(preset)
    found = model.encode(PROMPTS, faces(given))
    assert found.tokens.is_meta
    assert found.tokens.shape == found.text.shape == (BATCH, 77, 768 + width_g)
    assert found.pooled.shape == (BATCH, width_g)
    assert (found.identity is None) != given and (not given or found.identity.shape == (BATCH, 512))
    pixels = torch.rand(BATCH, 3, 224, 224, device="meta")
    image = towers_of(preset).image(pixels).embedding
    embedding = model.embed(PROMPTS, faces(given))
    assert image.shape == embedding.text.shape == (BATCH, clip)
    assert embedding.joint.shape == (BATCH, 512 + clip)
    assert model.heads.gallery(torch.zeros(BATCH, 512), image).shape == embedding.joint.shape


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("tower", "width"), [("text_l", 768), ("text_g", 1280)])
def test_shapes_of_one_branch(tower, width, given):
    towers = towers_of("bigg14")
    with torch.device("meta"):
        model = FaceCLIPEncoder.from_components(
            towers.recognizer, getattr(towers, tower), fusion=vars(config_of("bigg14").fusion)
        ).eval()
    found = model.encode(PROMPTS, faces(given))
    assert found.tokens.is_meta and found.tokens.shape == (BATCH, 77, width) and found.pooled.shape == (BATCH, width)


@pytest.mark.parametrize("given", [True, False])
def test_shapes_of_the_published_model(given):
    model = published_encoder()
    assert model.heads is None
    found = model.encode(PROMPTS, faces(given))
    assert found.tokens.is_meta and found.tokens.shape == (BATCH, 77, 2048) and found.pooled.shape == (BATCH, 1280)


def test_bigg14_is_the_published_model_with_heads():
    models = published_encoder(), joint_encoder("bigg14")
    shapes = [{name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} for model in models]
    assert shapes[0] == {name: shape for name, shape in shapes[1].items() if not name.startswith("heads.")}
    activations = [
        [str(getattr(model, b).text.tower.transformer.resblocks[0].mlp.gelu) for b in "lg"] for model in models
    ]
    assert activations[0] == activations[1] == ["QuickGELU()", "GELU(approximate='none')"]


def test_arcface_weights_of_the_published_size(tmp_path):
    """Every tensor a number of its own, repeated: the file is small, the tower a gigabyte."""
    with torch.device("meta"):
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in FaceViT().state_dict().items()}
    state = {
        name: torch.tensor(1 + i / 1000).to(dtype).expand(shape)
        for i, (name, (shape, dtype)) in enumerate(shapes.items())
    }
    file = tmp_path / "vit_l_dp005_mask_005.pth"
    torch.save(state, file)
    assert file.stat().st_size < 2**20
    tower = load_tower(f"arcface:{file}", "face")
    assert isinstance(tower, FaceViT) and not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    loaded = tower.state_dict()
    assert loaded.keys() == state.keys()
    assert all((loaded[name] == value.flatten()[0]).all() for name, value in state.items())
