"""Measures which photographs curation drops: of those with planted faults, and of those without.

    python -m eval.photos.curation photos=FOLDER work=DIR [each=500] [good=1000] [keep.max_text=…]

FOLDER has one folder of photos per person. DIR receives copies of the photos with and without faults, and the curation
of these; delete it afterwards. A second run with other `keep.` settings reuses all figures.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from eval.photos.planted import COPIES, FAULTS
from faceclip.data.curate.catalog import USUAL
from faceclip.data.curate.command import curate
from faceclip.data.curate.config import CurateConfig
from faceclip.data.curate.rules import KeepConfig
from faceclip.data.image_folder import SUFFIXES
from faceclip.data.image_store import files_below
from faceclip.data.mapping import DataConfig
from faceclip.errors import ConfigError, EmptyDatasetError
from faceclip.faces.images import load_image
from faceclip.settings import run, setting
from faceclip.storage.files import read_json, write_json, write_picture
from faceclip.storage.places import check_place

PHOTOS = 4  # most photos that one fault combines
WORDS = "planted.json"
GOOD = "0-good"  # sorts before the names of faults: of two equal pictures the first one is kept


@dataclass(kw_only=True)
class CurationConfig:
    """Settings of the command: what is planted, and what is kept."""

    photos: Path = setting(help="folder with one folder of photos per person")
    work: Path = setting(help="folder for pictures and figures, outside of photos=")
    each: int = setting(500, "pictures of each fault", least=1)
    good: int = setting(1000, "photos without a planted fault")
    seed: int = setting(0, "seed of the draw of photos and of the faults")
    measures: tuple[str, ...] = setting(USUAL, "as in faceclip.data.curate")
    keep: KeepConfig = field(default_factory=KeepConfig)

    def __post_init__(self) -> None:
        if self.work.resolve().is_relative_to(self.photos.resolve()):
            raise ConfigError(f"work={self.work} lies in photos={self.photos}: its pictures would be among the photos")
        if self.good < self.each:
            raise ConfigError(f"each, good: expected each ≤ good, got {self.each} and {self.good}")


def plant(config: CurationConfig) -> None:
    """Writes WORK/pictures, which the settings determine. Existing pictures are kept.

    Faults are planted in photos that are not among the good ones; a photo is used several times if there are fewer than
    `each`. Copies are made of good photos.

    Raises EmptyDatasetError if there are fewer than `good` + 4 photos, and ConfigError if `work` holds pictures of
    other settings or photos, or anything else.
    """
    photos = [file for file in files_below(config.photos) if file.suffix.lower() in SUFFIXES]
    if len(photos) < config.good + PHOTOS:
        raise EmptyDatasetError(
            f"photos={config.photos}: {len(photos)} photos; good={config.good} and {PHOTOS} more for the faults are "
            "needed"
        )
    _claim(config, len(photos))
    shuffled = [photos[i] for i in np.random.default_rng(config.seed).permutation(len(photos))]
    good, others, folder = shuffled[: config.good], shuffled[config.good :], config.work / "pictures"
    for number, file in enumerate(good):
        _write(folder / GOOD / f"{number:05d}.png", lambda file=file: load_image(file))
    for kind, fault in ({name: fault for name, (fault, _) in FAULTS.items()} | COPIES).items():
        for number in range(config.each):
            random = np.random.default_rng([config.seed, number, *kind.encode()])
            step = len(others) // PHOTOS
            files = [others[(number + i * step) % len(others)] for i in range(PHOTOS)]
            files = [good[number]] if kind in COPIES else files
            _write(
                folder / kind / f"{number:05d}.png",
                lambda fault=fault, files=files, random=random: fault([load_image(file) for file in files], random),
            )


def _claim(config: CurationConfig, photos: int) -> None:
    work = config.work
    check_place(work, "work=", (WORDS,))
    ours = {name: getattr(config, name) for name in ("each", "good", "seed")}
    ours |= {"photos": str(config.photos), "number of photos": photos}
    theirs = read_json(work / WORDS) if (work / WORDS).is_file() else ours
    different = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if different:
        raise ConfigError(
            f"work={work} holds pictures that were planted by other words ({', '.join(different)} differ): choose "
            "another work=, or delete this folder"
        )
    write_json(work / WORDS, ours)


def _write(path: Path, make: Any) -> None:
    if not path.is_file():
        write_picture(path, Image.fromarray(make()), compress_level=1)


def measure(config: CurationConfig) -> dict[str, Any]:
    """Plants the faults, curates, and returns how many pictures of each kind are dropped, and by which rules.

    kinds: for each kind of picture its number, the share that is dropped, and the share dropped as meant. rules: for
    each rule how many pictures it drops, and the shares of meant and of good ones. all: precision, recall, and the
    share of good pictures that is dropped.
    """
    work = config.work
    words = CurateConfig(
        data=DataConfig(path=str(work / "pictures"), shard_rows=256),
        out=str(work / "curated"),
        measures=config.measures,
        keep=config.keep,
        pictures="none",
        thumbnails=12,
    )
    plant(config)
    curate(words)
    total: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    meant: Counter[str] = Counter()
    rules: dict[str, Counter[str]] = {}
    for file in sorted((work / "curated" / "decisions").glob("*.parquet")):
        table = pq.read_table(file).to_pydict()
        for key, kept, reasons in zip(table["key"], table["kept"], table["reasons"], strict=True):
            kind = key.split("/")[0]
            total[kind] += 1
            dropped[kind] += not kept
            expected = ("duplicate",) if kind in COPIES else FAULTS[kind][1] if kind in FAULTS else ()
            meant[kind] += bool(set(expected) & set(reasons))
            for reason in reasons:
                rules.setdefault(reason, Counter())[kind] += 1
    kinds = {
        kind: {"pictures": count, "dropped": dropped[kind] / count, "as_meant": meant[kind] / count}
        for kind, count in total.items()
    }
    wanted = {rule: {kind for kind, (_, names) in FAULTS.items() if rule in names} for rule in rules}
    wanted["duplicate"] = set(COPIES)
    precision = {
        rule: {
            "dropped": sum(found.values()),
            "as_meant": sum(found[kind] for kind in wanted[rule]) / sum(found.values()),
            "of_good": found[GOOD] / total[GOOD],
        }
        for rule, found in rules.items()
    }
    bad = sum(count for kind, count in dropped.items() if kind != GOOD)
    whole = {
        "precision": bad / max(bad + dropped[GOOD], 1),
        "recall": bad / sum(count for kind, count in total.items() if kind != GOOD),
        "good_dropped": dropped[GOOD] / total[GOOD],
    }
    return {"kinds": kinds, "rules": precision, "all": whole}


def show(config: CurationConfig) -> None:
    """Measures, writes figures.json into `work`, and prints it."""
    figures = measure(config)
    write_json(config.work / "figures.json", figures)
    print(json.dumps(figures, indent=1))


main = partial(run, show, CurationConfig, interrupted="interrupted; the same command resumes")

if __name__ == "__main__":
    sys.exit(main())
