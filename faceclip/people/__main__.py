"""Generate labelled portraits of synthetic identities.

python -m faceclip.people --out DIR --identities 1000 --images-per-identity 8 --size 128 --seed 0
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from faceclip.data.worker_pool import usable_cores
from faceclip.people.framing import Framing
from faceclip.people.generate import generate
from faceclip.people.plan import Request, default_splits
from faceclip.settings import run, setting


@dataclass(kw_only=True)
class PeopleSettings:
    """The data set and how it is made."""

    out: Path = setting(help="folder of the data set; run again to resume")
    identities: int = setting(1000, "people")
    images_per_identity: int = setting(8, "portraits of each")
    size: int = setting(128, "side of the portraits in pixels")
    seed: int = setting(0, "of all people and portraits")
    framing: Framing = setting("bust", "how much of a person is seen")
    splits: tuple[int, int, int] | None = setting(None, "people for training, validation and test; null: 84, 4, 12 %")
    workers: int = setting(factory=usable_cores, help="processes that render", least=1)
    quiet: bool = setting(False, "no progress bar")

    def request(self) -> Request:
        """Returns what the data set consists of. Raises ConfigError for numbers that do not go together."""
        return Request(
            identities=self.identities,
            images_per_identity=self.images_per_identity,
            size=self.size,
            seed=self.seed,
            framing=self.framing,
            splits=self.splits or default_splits(self.identities),
        )


def make(settings: PeopleSettings) -> None:
    """Generates the data set and prints what it holds."""
    summary = generate(settings.out, settings.request(), workers=settings.workers, quiet=settings.quiet)
    for split, part in summary["counts"].items():
        print(f"{split:>10}: {part['identities']:,} identities, {part['images']:,} images")
    print(f"data set: {settings.out}")


main = partial(run, make, PeopleSettings, flags=True, interrupted="interrupted; run again to resume")

if __name__ == "__main__":
    sys.exit(main())
