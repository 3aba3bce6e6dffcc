"""Convert published FaceCLIP files to our layout, and back.

python -m faceclip.published convert face_clip_encoder.pt OUT
python -m faceclip.published export DIR face_clip_encoder.pt
python -m faceclip.published convert-unet unet.pt OUT
"""

import argparse
import sys
from pathlib import Path

from faceclip.errors import FaceClipError
from faceclip.published.checkpoint import convert, convert_unet, export
from faceclip.published.files import LICENSE

_ACTIONS = {"convert": convert, "export": export, "convert-unet": convert_unet}


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=tuple(_ACTIONS))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args(argv)
    try:
        _ACTIONS[arguments.action](arguments.source, arguments.target)
    except FaceClipError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.target} written. The published FaceCLIP weights are licensed {LICENSE}: no commercial use.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
