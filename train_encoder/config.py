"""Settings of stage 1, which trains fusion, projections and heads. The towers bring their own sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from faceclip.data.mapping import DataConfig, cache_folder, data_at
from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting
from faceclip.training import TrainerConfig

PRESETS = Path(__file__).parent / "presets"


def check_heads(key: str, heads: int, widths: Mapping[str, int]) -> None:
    """Raises ConfigError unless the number of attention heads `key` divides each of these named widths."""
    for name, width in widths.items():
        if width % heads:
            raise ConfigError(f"{key}: must divide {name}, which is {width}; got {heads}")


@dataclass(kw_only=True)
class TowersConfig:
    """The frozen towers, as `faceclip.towers.pretrained.load_tower` takes them.

    Each is a directory, a name of shipped weights (`tiny/recognizer`), `open_clip:MODEL/TAG`, `arcface:FILE`,
    `onnx:FILE` (a recognizer of an insightface pack) or `dlib` (a recognizer for photographs, extra `photos`).
    """

    recognizer: str = setting(
        "tiny/recognizer", "directory, shipped name, arcface:FILE, onnx:FILE or dlib", resume="free", path=True
    )
    text_l: str = setting(
        "tiny/text_tower_l", "directory, shipped name or open_clip:MODEL/TAG", resume="free", path=True
    )
    text_g: str = setting(
        "tiny/text_tower_g", "directory, shipped name or open_clip:MODEL/TAG", resume="free", path=True
    )
    image: str = setting("tiny/image_tower", "directory, shipped name or open_clip:MODEL/TAG", resume="free", path=True)


@dataclass(kw_only=True)
class FusionConfig:
    """Arguments of `faceclip.fusion.FeatureFusion`."""

    layers: int = setting(3, "feature enhancer layers", least=1)
    attention_width: int = setting(128, "of the attention between text and face", least=1)
    attention_heads: int = setting(4, "of that attention", least=1)
    text_hidden: int = setting(256, "width of the text side's feed-forward", least=1)
    face_heads: int = setting(8, "of the deformable attention", least=1)
    points: int = setting(4, "sampled per head", least=1)
    face_hidden: int = setting(256, "width of the face side's feed-forward", least=1)
    layer_scale: float = setting(0.3, "start of the residual scales")

    def __post_init__(self) -> None:
        check_bounds(self, "fusion.")
        check_heads("fusion.attention_heads", self.attention_heads, {"fusion.attention_width": self.attention_width})


@dataclass(kw_only=True)
class HeadsConfig:
    """Arguments of `faceclip.heads.JointHeads` beyond the towers' sizes."""

    hidden: int = setting(256, "width of the retrieval heads", least=1)
    heads: int = setting(4, "of their attention pool", least=1)

    def __post_init__(self) -> None:
        check_bounds(self, "heads.")


@dataclass(kw_only=True)
class LossConfig:
    """Weights of the loss terms, and initial scale and bias of every term (Zhai et al. 2023).

    A generator reads text in the space of the towers' own states. The fused tokens are kept near it, so that stage 2
    only has to teach the generator the face.
    """

    face: float = setting(1.0, "weight: joint embedding against the face's", least=0)
    text: float = setting(0.5, "weight: against the text's", least=0)
    image: float = setting(0.5, "weight: against the picture's", least=0)
    joint: float = setting(1.0, "weight: composed queries against pictures", least=0)
    tokens: float = setting(10.0, "weight that keeps the fused tokens near the text towers' own states", least=0)
    log_scale: float = setting(2.6592, "start of every term's scale")
    bias: float = setting(-10.0, "start of every term's bias")

    def __post_init__(self) -> None:
        check_bounds(self, "loss.")


@dataclass(kw_only=True)
class SamplingConfig:
    """The sampling of a batch, which holds `trainer.batch_size` persons × `images` pictures."""

    images: int = setting(4, "pictures of each person in a batch; two and more give hard negatives", least=2)
    face_only: float = setting(0.2, "share of queries without text", least=0, most=1)
    text_only: float = setting(0.1, "share of queries without face", least=0, most=1)
    same_picture: float = setting(0.05, "share of references that are the target picture itself", least=0, most=1)

    def __post_init__(self) -> None:
        check_bounds(self, "sampling.")
        if self.face_only + self.text_only >= 1:
            raise ConfigError("sampling.face_only and sampling.text_only: together they must stay below 1")


@dataclass(kw_only=True)
class EncoderConfig:
    """Settings of stage 1.

    With `init`, towers and fusion are those of that encoder, and so are its heads if it has any; if it has no image
    tower beside it, `towers.image` names the one that belongs to its text tower G. Without `train_identity`, the text
    towers need no backward pass and their states can be cached; every caption then has one reference picture, which is
    drawn once instead of in every epoch.
    """

    data: str | DataConfig = setting(
        "", "data set directory, or a group of data.* keys for any other data (docs/data.md)", resume="free", path=True
    )
    init: str = setting(
        "",
        "joint encoder to train further: published file or hub id, converted directory, or an export",
        resume="free",
        path=True,
    )
    train_identity: bool = setting(True, "train the projections of the identity; false needs init")
    cached_text: bool = setting(False, "read the text towers' states from disk; one reference picture per caption")
    out: str = setting("runs/encoder", "folder of the run", resume="free", path=True)
    cache: str = setting("", "folder of frozen features; '': below the data", resume="free", path=True)
    towers: TowersConfig = field(default_factory=TowersConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    validation_queries: int = setting(600, "most queries of a validation", resume="free", least=1)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        self.data = data_at(self.data)
        check_bounds(self)
        if self.cached_text and self.train_identity:
            raise ConfigError(
                "cached_text: while projections of the identity are trained, the text towers' states "
                "change in every step; set train_identity=false or cached_text=false"
            )

    @property
    def cache_path(self) -> Path:
        """The folder of frozen features."""
        return cache_folder(data_at(self.data), self.cache)

    def check_widths(self, text_l: int, text_g: int) -> None:
        """Raises ConfigError for attention heads that do not divide the widths of the text towers."""
        widths = {"the width of towers.text_l": text_l, "the width of towers.text_g": text_g}
        check_heads("fusion.attention_heads", self.fusion.attention_heads, widths)
        check_heads("fusion.face_heads", self.fusion.face_heads, widths)
        check_heads("heads.heads", self.heads.heads, {"the width of both text towers together": text_l + text_g})
