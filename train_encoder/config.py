"""Configuration of stage 1. Sizes of the towers are theirs; what is trained here is fusion, projections and heads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faceclip.data.mapping import DataConfig
from faceclip.errors import ConfigError
from faceclip.training import TrainerConfig

PRESETS = Path(__file__).parent / "presets"


def _check_positive(section: str, config: Any, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{section}.{name}: must be at least 1, got {getattr(config, name)}")


def check_heads(key: str, heads: int, widths: Mapping[str, int]) -> None:
    """Raises ConfigError unless the number of attention heads `key` divides each of these named widths."""
    for name, width in widths.items():
        if width % heads:
            raise ConfigError(f"{key}: must divide {name}, which is {width}; got {heads}")


@dataclass(kw_only=True)
class TowersConfig:
    """The frozen towers, by what `faceclip.towers.pretrained.load_tower` takes: a directory, a name of shipped weights
    (`tiny/recognizer`), `open_clip:MODEL/TAG`, `arcface:FILE` or `onnx:FILE` (a recognizer of an insightface pack)."""

    recognizer: str = "tiny/recognizer"
    text_l: str = "tiny/text_tower_l"
    text_g: str = "tiny/text_tower_g"
    image: str = "tiny/image_tower"


@dataclass(kw_only=True)
class FusionConfig:
    """Arguments of `faceclip.fusion.FeatureFusion`."""

    layers: int = 3
    attention_width: int = 128
    attention_heads: int = 4
    text_hidden: int = 256
    face_heads: int = 8
    points: int = 4
    face_hidden: int = 256
    layer_scale: float = 0.3

    def __post_init__(self) -> None:
        _check_positive(
            "fusion",
            self,
            "layers",
            "attention_width",
            "attention_heads",
            "text_hidden",
            "face_heads",
            "points",
            "face_hidden",
        )
        check_heads("fusion.attention_heads", self.attention_heads, {"fusion.attention_width": self.attention_width})


@dataclass(kw_only=True)
class HeadsConfig:
    """Arguments of `faceclip.heads.JointHeads` beyond the towers' sizes."""

    hidden: int = 256
    heads: int = 4

    def __post_init__(self) -> None:
        _check_positive("heads", self, "hidden", "heads")


@dataclass(kw_only=True)
class LossConfig:
    """Weights of the loss terms and the start of every term's scale and bias (Zhai et al. 2023).

    tokens: keeps the fused tokens near the towers' own states, the space in which a generator reads text, so that
    stage 2 has to teach it the face only.
    """

    face: float = 1.0
    text: float = 0.5
    image: float = 0.5
    joint: float = 1.0
    tokens: float = 10.0
    log_scale: float = 2.6592  # ln(1/0.07), as in the published checkpoint
    bias: float = -10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            signed = name in ("log_scale", "bias")
            if not math.isfinite(value) or (value < 0 and not signed):
                raise ConfigError(f"loss.{name}: must be finite{'' if signed else ' and not negative'}, got {value}")


@dataclass(kw_only=True)
class SamplingConfig:
    """A batch holds `trainer.batch_size` persons × `images` pictures; shares of queries without text or face."""

    images: int = 4
    face_only: float = 0.2
    text_only: float = 0.1
    same_picture: float = 0.05  # the reference is the target picture itself

    def __post_init__(self) -> None:
        if self.images < 2:
            raise ConfigError(f"sampling.images: at least 2 are needed for hard negatives, got {self.images}")
        for name in ("face_only", "text_only", "same_picture"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"sampling.{name}: a share from 0 to 1 is expected, got {getattr(self, name)}")
        if self.face_only + self.text_only >= 1:
            raise ConfigError("sampling.face_only and sampling.text_only: together they must stay below 1")


@dataclass(kw_only=True)
class EncoderConfig:
    """Stage 1. `data`: data set directory, or where any other data lie and what their columns mean (docs/data.md);
    `out`: run directory; `cache`: frozen features (default: below `data`).

    init: a joint encoder to train further with a new optimizer, by what `faceclip.published.load_faceclip` takes (the
    published file, its hub id, a converted directory) or an export of this command; it brings its towers and fusion,
    and heads if it has them. Where no image tower lies beside it, `towers.image` names that of its text tower G.
    train_identity: whether the projections are trained that put the identity into the prompt; without (`init` only)
    the text towers run forward alone, and their states can be cached. cached_text: read these from disk; every caption
    then has one reference picture, drawn once, not anew in every epoch.
    """

    data: str | DataConfig = ""
    init: str = ""
    train_identity: bool = True
    cached_text: bool = False
    out: str = "runs/encoder"
    cache: str = ""
    towers: TowersConfig = field(default_factory=TowersConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    validation_queries: int = 600
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if self.validation_queries < 1:
            raise ConfigError(f"validation_queries: must be at least 1, got {self.validation_queries}")
        if self.cached_text and self.train_identity:
            raise ConfigError(
                "cached_text: while projections of the identity are trained, the text towers' states "
                "change in every step; set train_identity=false or cached_text=false"
            )

    def check_widths(self, text_l: int, text_g: int) -> None:
        """Raises ConfigError for attention heads that do not divide the widths of the text towers."""
        widths = {"the width of towers.text_l": text_l, "the width of towers.text_g": text_g}
        check_heads("fusion.attention_heads", self.fusion.attention_heads, widths)
        check_heads("fusion.face_heads", self.fusion.face_heads, widths)
        check_heads("heads.heads", self.heads.heads, {"the width of both text towers together": text_l + text_g})


def data_config(config: EncoderConfig) -> DataConfig:
    """`config.data`, a folder or a whole configuration. Raises ConfigError when there is none."""
    data = DataConfig(path=config.data) if isinstance(config.data, str) else config.data
    if not data.path:
        raise ConfigError("data: name the data set, as in data=DIR or data.path=OWNER/NAME")
    if isinstance(config.data, str) and not Path(data.path).exists():
        raise ConfigError(
            f"data={data.path}: no such folder; make it by `python -m faceclip.people --out "
            f"{data.path}`, or name a hub data set by data.path=OWNER/NAME"
        )
    return data


def cache_folder(config: EncoderConfig) -> Path:
    """`config.cache`, or `.features` beside local data, or a folder of the working directory for hub data."""
    path = Path(data_config(config).path)
    if config.cache:
        return Path(config.cache)
    if path.exists():
        return (path if path.is_dir() else path.parent) / ".features"
    return Path("data-cache") / str(path).replace("/", "--")
