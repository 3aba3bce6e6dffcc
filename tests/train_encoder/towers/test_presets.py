"""Every preset that ships is a valid configuration, and its sizes make the models they are meant for."""

from pathlib import Path

import pytest
import torch

from eval.judges.attributes import JudgeConfig
from eval.judges.second_recognizer import SecondRecognizerConfig
from faceclip.face3d.fitter import FaceFitter
from faceclip.towers.face import FaceViT
from faceclip.towers.image import ImageTower
from faceclip.towers.text import TextTower
from faceclip.training import parse_config
from faceclip.training.towers.command import presets_of
from train_encoder.config import PRESETS as ENCODER_PRESETS
from train_encoder.config import EncoderConfig
from train_encoder.towers.clip import ClipConfig
from train_encoder.towers.fitter import FitterConfig
from train_encoder.towers.recognizer import RecognizerConfig
from train_generator.config import PRESETS as GENERATOR_PRESETS
from train_generator.config import GeneratorConfig
from train_generator.towers.base import BaseConfig
from train_generator.towers.base import make_model as make_unet
from train_generator.towers.vae import VaeConfig
from train_generator.towers.vae import make_model as make_vae

ENCODER_TOWERS, GENERATOR_TOWERS, JUDGES = (
    presets_of(package) for package in ("train_encoder.towers", "train_generator.towers", "eval.judges")
)
TOWERS = {
    "recognizer": RecognizerConfig,
    "clip": ClipConfig,
    "fitter": FitterConfig,
    "attributes": JudgeConfig,
    "second_recognizer": SecondRecognizerConfig,
    "vae": VaeConfig,
    "base": BaseConfig,
}


def read(config_class: type, folder: Path, name: str):
    return parse_config(config_class, ["--preset", name, "data=DIR"], presets=folder)


@pytest.mark.parametrize(("config", "folder"), [(EncoderConfig, ENCODER_PRESETS), (GeneratorConfig, GENERATOR_PRESETS)])
def test_presets_of_both_stages(config, folder):
    names = {path.stem for path in folder.glob("*.yaml")}
    assert {"tiny", "small"} <= names
    for name in names:
        parsed = read(config, folder, name)
        assert parsed.trainer.steps > 0 and parsed.data.path == "DIR"


def test_presets_of_all_towers():
    files = [path for folder in (ENCODER_TOWERS, GENERATOR_TOWERS, JUDGES) for path in folder.glob("*/*.yaml")]
    assert {path.parent.name for path in files} == TOWERS.keys()
    for path in files:
        assert read(TOWERS[path.parent.name], path.parent, path.stem).trainer.batch_size > 0


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_sizes_make_models(name):
    """On the meta device: shapes and divisibility are checked, nothing is allocated."""
    with torch.device("meta"):
        recognizer = read(RecognizerConfig, ENCODER_TOWERS / "recognizer", name).model
        assert FaceViT(**vars(recognizer))(torch.rand(2, 3, 448, 448)).identity.shape == (2, recognizer.embedding_dim)
        clip = read(ClipConfig, ENCODER_TOWERS / "clip", name)
        image = ImageTower(**vars(clip.image), embed_dim=clip.embed_dim)
        assert image(torch.rand(2, 3, 64, 64)).embedding.shape == (2, clip.embed_dim)
        widths = [clip.text_l.width, clip.text_g.width]
        for sizes in (clip.text_l, clip.text_g):
            assert TextTower(**vars(sizes), embed_dim=clip.embed_dim).config.width == sizes.width
        fitter = read(FitterConfig, ENCODER_TOWERS / "fitter", name).model
        assert FaceFitter(**vars(fitter)).corrector.update.in_features == fitter.look_hidden
        vae = read(VaeConfig, GENERATOR_TOWERS / "vae", name)
        pictures = torch.rand(1, 3, vae.size, vae.size)
        latents = make_vae(vae.model, vae.size).encode(pictures).latent_dist.mean
        unet = read(BaseConfig, GENERATOR_TOWERS / "base", name)
        assert unet.size == vae.size
        model = make_unet(unet.model, latents=tuple(latents.shape[1:3]), context=sum(widths), pooled=widths[1])
        added = {"text_embeds": torch.rand(1, widths[1]), "time_ids": torch.rand(1, 6)}
        out = model(latents, 5, encoder_hidden_states=torch.rand(1, 77, sum(widths)), added_cond_kwargs=added).sample
        assert out.shape == latents.shape
