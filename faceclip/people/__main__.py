"""Generate labelled portraits of synthetic identities.

python -m faceclip.people --out DIR --identities 1000 --images-per-identity 8 --size 128 --seed 0
"""

import argparse
import sys
from pathlib import Path

from faceclip.data.worker_pool import usable_cores
from faceclip.errors import ConfigError, FaceClipError
from faceclip.people.framing import FRAMINGS
from faceclip.people.generate import generate
from faceclip.people.plan import Request, default_splits


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m faceclip.people", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set; run again to resume")
    parser.add_argument("--identities", type=int, default=1000)
    parser.add_argument("--images-per-identity", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="side of the portraits in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--framing", choices=FRAMINGS, default="bust", help="head and shoulders (default), or the head alone"
    )
    parser.add_argument(
        "--splits",
        type=int,
        nargs=3,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="identities per split, adding up to --identities; default 84, 4 and 12 %%",
    )
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    try:
        if options.workers < 1:
            raise ConfigError(f"--workers must be at least 1, got {options.workers}")
        request = Request(
            identities=options.identities,
            images_per_identity=options.images_per_identity,
            size=options.size,
            seed=options.seed,
            splits=tuple(options.splits) if options.splits else default_splits(options.identities),
            framing=options.framing,
        )
        summary = generate(options.out, request, workers=options.workers, quiet=options.quiet)
    except FaceClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for split, part in summary["counts"].items():
        print(f"{split:>10}: {part['identities']:,} identities, {part['images']:,} images")
    print(f"data set: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
