"""Settings of `python -m faceclip.data.curate`."""

from dataclasses import dataclass, field
from typing import Literal

from faceclip.data.curate.backends import Backend
from faceclip.data.curate.catalog import USUAL, choose_measures
from faceclip.data.curate.measures import SMALLEST
from faceclip.data.curate.rules import KeepConfig, active_rules
from faceclip.data.curate.shards import table_schema
from faceclip.data.mapping import DataConfig
from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting

SMALLEST_FACE = 36  # px, about half of the side of a face that keep.min_face_side lets pass


@dataclass(kw_only=True)
class PairsConfig:
    """Settings of the search for pairs of different pictures of the same person (needs the measure `identity`).

    A pair is kept if the cosine of its embeddings lies between the bounds. Bounds that are null are estimated from
    the data: one in a thousand pairs of different people reaches `low`, and the most similar hundredth of the
    pairs of the same person reaches `high`.
    """

    low: float | None = setting(None, "smallest cosine of a pair; null: from the data")
    high: float | None = setting(None, "cosine from which two pictures are the same photo; null: from the data")
    per_person: int = setting(50, "largest number of pairs per person; the first ones are taken", least=1)

    def __post_init__(self) -> None:
        check_bounds(self, "pairs.")


@dataclass(kw_only=True)
class CurateConfig:
    """Settings of the command: the data, the measures, and the rules that decide what is kept."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str = setting("", "folder of the figures, the kept data set and the report", path=True)
    splits: tuple[str, ...] = setting(("train",), "splits of the data; near-duplicates are searched across all of them")
    measures: tuple[str, ...] = setting(USUAL, "shipped measures; identity needs the extra photos")
    plugins: tuple[str, ...] = setting((), "your own measures, MODULE:NAME, for example a detector of NSFW pictures")
    smallest_face: int = setting(
        SMALLEST_FACE,
        "px; side of the smallest face that the detector mtcnn looks for. 20: also the small ones of a background, by "
        "its usual search, which takes twice the time",
        least=SMALLEST,
    )
    keep: KeepConfig = field(default_factory=KeepConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    backend: Backend = setting("inline", "inline, processes (data.workers of them), or ray (RAY_ADDRESS)")
    pictures: Literal["copy", "paths", "none"] = setting(
        "copy", "copy: kept pictures go into the new data set; paths: it names files of the old one; none: no data set"
    )
    licence: str = setting("", "licence of the pictures, for the data card")
    thumbnails: int = setting(8, "pictures shown on each side of a threshold; 0: none", least=0, most=100)

    def __post_init__(self) -> None:
        check_bounds(self)
        for name, value in (("data.path", self.data.path), ("out", self.out)):
            if not value:
                raise ConfigError(f"{name}: name its folder, as in {name}=DIR")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ConfigError(f"splits: expected different names of splits, got {list(self.splits)}")
        if self.data.detector != "mtcnn":
            if self.smallest_face not in (SMALLEST, SMALLEST_FACE):
                raise ConfigError(f"smallest_face: data.detector={self.data.detector} looks for faces of all sizes")
        elif self.keep.min_face_side is not None and self.keep.min_face_side < self.smallest_face > SMALLEST:
            raise ConfigError(
                f"keep.min_face_side={self.keep.min_face_side:g} keeps faces that are not looked for: set "
                f"smallest_face={SMALLEST}, or a larger side"
            )
        active_rules(self.keep, table_schema(choose_measures(self.measures, self.plugins)))
        if any(bound is not None for bound in (self.pairs.low, self.pairs.high)) and "identity" not in self.measures:
            raise ConfigError("pairs: add identity to measures=, which gives the embeddings")
