"""Checks that the shards of an import of photos belong to the same request and are unchanged."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faceclip.errors import ConfigError, DataError
from faceclip.storage.hashes import file_hash


def link(path: Path, other: Path) -> None:
    """Links a file to another name, or copies it if the file system has no links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def check_files(folder: Path, files: list[dict[str, Any]], whole: Path) -> None:
    """Raises DataError if a shard is missing or changed; `whole` names what has to be written again."""
    for file in files:
        path = folder / file["path"]
        if not path.is_file() or file_hash(path) != file["sha256"]:
            raise DataError(f"{path} is missing or changed since it was written: delete {whole} and run again")


def check_same(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises ConfigError, which names the differences, if the folder was made by another request."""
    ours = json.loads(json.dumps(ours))  # as it is read back
    theirs = {"format": "png"} | dict(theirs)  # which earlier imports did not say
    different = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if different:
        raise ConfigError(
            f"{folder} holds photos imported otherwise or of other content ({', '.join(different)} differ): choose "
            "another out=, or delete this folder"
        )
