"""Settings of `python -m faceclip.data.curate`."""

from dataclasses import dataclass, field
from typing import Literal

from faceclip.data.curate.backends import Backend
from faceclip.data.curate.catalog import USUAL, choose_measures
from faceclip.data.curate.rules import KeepConfig, active_rules
from faceclip.data.curate.shards import table_schema
from faceclip.data.mapping import DataConfig
from faceclip.errors import ConfigError
from faceclip.settings import setting


@dataclass(kw_only=True)
class PairsConfig:
    """Pairs of one person in two different pictures, by the cosine of their embeddings (`measures` with identity).

    The window is that of the recognizer: without bounds it is taken from the data, so that one in a thousand pairs of
    two people would pass from below, and the likest hundredth of the pairs of one person is left out at the top.
    """

    low: float | None = setting(None, "least cosine; null: from the data")
    high: float | None = setting(None, "cosine from which two pictures count as one photo; null: from the data")
    per_person: int = setting(50, "pairs of a person at most, the first ones")


@dataclass(kw_only=True)
class CurateConfig:
    """Which data are curated, what is measured of them, and what is kept."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str = setting("", "folder of what is measured and kept", path=True)
    splits: tuple[str, ...] = setting(("train",), "splits of the data; near-duplicates are looked for across all")
    measures: tuple[str, ...] = setting(USUAL, "shipped measures; identity needs the extra photos")
    plugins: tuple[str, ...] = setting((), "one's own measures, MODULE:NAME, such as one of NSFW pictures")
    keep: KeepConfig = field(default_factory=KeepConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    backend: Backend = setting("inline", "inline, processes (data.workers of them), or ray (RAY_ADDRESS)")
    pictures: Literal["copy", "paths", "none"] = setting(
        "copy", "copy: kept pictures go into the new data set; paths: it names files of the old one; none: no data set"
    )
    licence: str = setting("", "of the pictures, for the data card")
    thumbnails: int = setting(8, "pictures shown on each side of a threshold; 0: none")

    def __post_init__(self) -> None:
        for name, value in (("data.path", self.data.path), ("out", self.out)):
            if not value:
                raise ConfigError(f"{name}: name its folder, as in {name}=DIR")
        if not self.splits or len(set(self.splits)) < len(self.splits):
            raise ConfigError(f"splits: expected different names of splits, got {list(self.splits)}")
        if not 0 <= self.thumbnails <= 100:
            raise ConfigError(f"thumbnails: 0 to 100 are expected, got {self.thumbnails}")
        if self.pairs.per_person < 1:
            raise ConfigError(f"pairs.per_person: must be at least 1, got {self.pairs.per_person}")
        active_rules(self.keep, table_schema(choose_measures(self.measures, self.plugins)))
        if any(bound is not None for bound in (self.pairs.low, self.pairs.high)) and "identity" not in self.measures:
            raise ConfigError("pairs: add identity to measures=, which gives the embeddings")
