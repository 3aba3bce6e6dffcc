"""Loads what stage 1 starts from: towers with a new fusion over them, or a joint encoder to train further."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError, ConfigError
from faceclip.published.checkpoint import load_faceclip
from faceclip.storage.hashes import module_hash
from faceclip.towers.pretrained import load_tower
from train_encoder.config import EncoderConfig, FusionConfig, HeadsConfig, TowersConfig, check_heads
from train_encoder.towers_io import Towers, check_space, load_towers


@dataclass(frozen=True, kw_only=True)
class Start:
    """The start of a training.

    towers: the frozen towers; those of a loaded encoder are its own modules. loaded: the encoder that `init` named, or
    None. hash: of its loaded weights, before new heads were added, or "none".
    """

    towers: Towers
    loaded: FaceCLIP | None = None
    hash: str = "none"

    def model(self, config: EncoderConfig) -> FaceCLIP:
        """Returns the joint encoder to train."""
        if self.loaded is not None:
            return self.loaded
        towers = self.towers
        return FaceCLIP.from_components(
            towers.recognizer, towers.text_l, towers.text_g, fusion=asdict(config.fusion), joint=asdict(config.heads)
        )


def load_start(config: EncoderConfig) -> Start:
    """Loads the towers, or the encoder that `init` names.

    Raises:
        CheckpointError: the encoder or a tower is missing, damaged or does not fit.
        ConfigError: sizes do not fit the towers; settings contradict the encoder of `init`; each of its branches has a
            face encoder of its own; or `train_identity` is false without `init`.
    """
    if config.init:
        return _further(config)
    if not config.train_identity:
        raise ConfigError(
            "train_identity=false: a new projection of the identity would stay random; name an encoder "
            "that has a trained one by init="
        )
    towers = load_towers(config.towers)
    config.check_widths(towers.text_l.config.width, towers.text_g.config.width)
    return Start(towers=towers)


def _further(config: EncoderConfig) -> Start:
    try:
        model = load_faceclip(config.init, dtype=torch.float32)
    except CheckpointError as error:
        raise CheckpointError(
            f"init={config.init} cannot be loaded; give a published FaceCLIP or RUN/export of this command ({error})"
        ) from error
    begun = module_hash(model)
    if len(model.face_encoders) > 1:
        raise ConfigError(
            f"init={config.init}: each of its branches has a face encoder of its own, and training caches"
            " the features of one: give an encoder of shared_face=true"
        )
    usual, own = TowersConfig(), Path(config.init) / "image_tower"
    brought = [
        f"towers.{name}"
        for name in ("recognizer", "text_l", "text_g", *(["image"] if own.is_dir() else []))
        if getattr(config.towers, name) != getattr(usual, name)
    ]
    if config.fusion != FusionConfig() and asdict(config.fusion) != dict(model.config.fusion or {}):
        brought.append("fusion")
    if model.heads is not None and config.heads not in (HeadsConfig(), HeadsConfig(**model.config.joint)):
        brought.append("heads")
    if brought:
        raise ConfigError(
            f"init={config.init} brings its own {', '.join(brought)}: leave out what is set there (of a "
            "preset for new encoders, too)"
        )
    text_l, text_g = model.l.text, model.g.text
    if model.heads is None:
        check_heads(
            "heads.heads",
            config.heads.heads,
            {"the width of both text towers together": text_l.config.width + text_g.config.width},
        )
        model.add_heads(**asdict(config.heads))
    model.freeze_towers()
    named = str(own) if own.is_dir() else config.towers.image
    image = load_tower(named, "image")
    check_space(text_g, image, f"the text tower G of init={config.init}", f"towers.image={named}")
    towers = Towers(recognizer=model.face_encoder, text_l=text_l, text_g=text_g, image=image)
    return Start(towers=towers, loaded=model, hash=begun)
