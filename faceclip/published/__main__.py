"""Convert published FaceCLIP files to our layout, and back.

python -m faceclip.published convert face_clip_encoder.pt OUT
python -m faceclip.published export DIR face_clip_encoder.pt
python -m faceclip.published convert-unet unet.pt OUT
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from faceclip.published.checkpoint import convert, convert_unet, export
from faceclip.published.files import LICENSE
from faceclip.settings import run, setting

_ACTIONS = {"convert": convert, "export": export, "convert-unet": convert_unet}


@dataclass(kw_only=True)
class Conversion:
    """What is converted and where to."""

    action: Literal["convert", "export", "convert-unet"] = setting(help="what to do", positional=True)
    source: Path = setting(help="file of the release, or (export) a converted folder", positional=True)
    target: Path = setting(help="new folder, or (export) new file", positional=True)


def work(settings: Conversion) -> None:
    """Converts and prints the licence."""
    _ACTIONS[settings.action](settings.source, settings.target)
    print(f"{settings.target} written. The published FaceCLIP weights are licensed {LICENSE}: no commercial use.")


main = partial(run, work, Conversion, flags=True)

if __name__ == "__main__":
    sys.exit(main())
