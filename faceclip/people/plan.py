"""What a synthetic data set consists of: the request, its shards, and who is in which split."""

from dataclasses import dataclass, fields
from pathlib import Path

from faceclip.data.records import SPLITS
from faceclip.errors import ConfigError
from faceclip.people.framing import Framing
from faceclip.settings import check_bounds, setting
from faceclip.storage.files import read_json

VERSION = "1.0.0"
"""Raised whenever the same seed gives other pictures or labels."""

DEFAULT_SHARES = (0.84, 0.04, 0.12)
IMAGES_PER_SHARD = 256


@dataclass(frozen=True, kw_only=True)
class Request:
    """A data set to generate (`faceclip.people.framing` explains the framing)."""

    identities: int = setting(1000, "people", least=1)
    images_per_identity: int = setting(8, "portraits of each", least=1)
    size: int = setting(128, "side of the portraits in pixels", least=32)
    seed: int = setting(0, "of all people and portraits", least=0)
    splits: tuple[int, int, int] | None = setting(None, "people for training, validation and test; null: 84, 4, 12 %")
    framing: Framing = setting("bust", "how much of a person is seen")

    def __post_init__(self) -> None:
        check_bounds(self, "--")
        if min(self.people) < 0 or sum(self.people) != self.identities:
            raise ConfigError(
                f"--splits {' '.join(map(str, self.people))} must be three counts that add up to "
                f"--identities {self.identities}"
            )

    @property
    def people(self) -> tuple[int, int, int]:
        """The identities of train, validation and test."""
        return self.splits or default_splits(self.identities)

    def to_dict(self) -> dict:
        """Returns what the files say of the request; data sets without a framing were made before there were two."""
        facts = {field.name: getattr(self, field.name) for field in fields(Request)}
        facts |= {"splits": list(self.people), "version": VERSION}
        if self.framing == "bust":
            del facts["framing"]
        return facts


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A parquet file: images of identities first … last − 1 of one split."""

    split: str
    path: str
    first: int
    last: int


def default_splits(identities: int) -> tuple[int, int, int]:
    """Returns identities per split by `DEFAULT_SHARES`; with three identities or more no split is empty."""
    if identities < 3:
        return (identities, 0, 0)
    validation, test = (max(1, round(identities * share)) for share in DEFAULT_SHARES[1:])
    return (identities - validation - test, validation, test)


def plan_shards(request: Request) -> list[Shard]:
    """Returns all shards in order. Splits take consecutive identities, so that no person is in two of them."""
    per_shard = max(1, IMAGES_PER_SHARD // request.images_per_identity)
    shards, start = [], 0
    for split, count in zip(SPLITS, request.people, strict=True):
        total = -(-count // per_shard)
        for number in range(total):
            first = start + number * per_shard
            path = f"data/{split}-{number:05d}-of-{total:05d}.parquet"
            shards.append(Shard(split=split, path=path, first=first, last=min(first + per_shard, start + count)))
        start += count
    return shards


def check_same_request(directory: Path, request: Request) -> None:
    """Refuses to mix two data sets in one folder. Raises `ConfigError` naming the difference, `DataError` when the
    file that tells what the folder holds cannot be read."""
    for name in ("request.json", "dataset.json"):
        path = directory / name
        if not path.is_file():
            continue
        stored = read_json(path)
        wanted = request.to_dict()
        different = [key for key in (*wanted, "framing") if stored.get(key) != wanted.get(key)]
        if different:
            changes = ", ".join(
                f"{key} {stored.get(key)} instead of {wanted.get(key)}" for key in dict.fromkeys(different)
            )
            raise ConfigError(f"{directory} holds another data set ({changes}): choose another --out")
