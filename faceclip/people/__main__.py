"""Generate labelled portraits of synthetic identities.

python -m faceclip.people --out DIR --identities 1000 --images-per-identity 8 --size 128 --seed 0
"""

import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from faceclip.data.worker_pool import usable_cores
from faceclip.people.generate import generate
from faceclip.people.plan import Request
from faceclip.settings import run, setting


@dataclass(frozen=True, kw_only=True)
class PeopleSettings(Request):
    """The data set and how it is made."""

    out: Path = setting(help="folder of the data set; run again to resume")
    workers: int = setting(factory=usable_cores, help="processes that render", least=1)
    quiet: bool = setting(False, "no progress bar")


def make(settings: PeopleSettings) -> None:
    """Generates the data set and prints what it holds."""
    # Workers do not know the classes of the module that runs.
    request = Request(**{field.name: getattr(settings, field.name) for field in fields(Request)})
    summary = generate(settings.out, request, workers=settings.workers, quiet=settings.quiet)
    for split, part in summary["counts"].items():
        print(f"{split:>10}: {part['identities']:,} identities, {part['images']:,} images")
    print(f"data set: {settings.out}")


main = partial(run, make, PeopleSettings, flags=True, interrupted="interrupted; run again to resume")

if __name__ == "__main__":
    sys.exit(main())
