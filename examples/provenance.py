"""Which pictures of a folder were drawn by this project: python examples/provenance.py pictures."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from faceclip.errors import ConfigError, FaceError
from faceclip.faces import load_image
from faceclip.settings import run, setting
from makeup_plugin.marking import watermark
from makeup_plugin.marking.provenance import read_provenance

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(kw_only=True)
class FolderSettings:
    """Where to look."""

    folder: Path = setting(help="folder of pictures", positional=True)


def look(settings: FolderSettings) -> None:
    """The record in each file, which a copy may have lost, and the watermark in its pixels."""
    if not settings.folder.is_dir():
        raise ConfigError(f"folder: no folder {settings.folder}; name one that holds pictures")
    for path in sorted(path for path in settings.folder.iterdir() if path.suffix.lower() in SUFFIXES):
        try:
            pixels, record = load_image(path), read_provenance(path)
        except FaceError as error:
            print(f"{path.name}: {error}")
            continue
        said = "no record" if record is None else f"record of {record['model']}, seed {record['seed']}"
        marked = watermark.detect(pixels.astype(np.float32) / 255)
        print(f"{path.name}: {said}, {'watermark' if marked else 'no watermark'}")


if __name__ == "__main__":
    if status := run(look, FolderSettings, flags=True):
        sys.exit(status)
