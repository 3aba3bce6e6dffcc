"""Files of other packages, whose content is known: where they lie, and whether they are those that were published."""

import importlib.util
from pathlib import Path

from faceclip.errors import CheckpointError, MissingExtraError
from faceclip.storage.hashes import bytes_hash
from faceclip.storage.regular import read_regular

MAX_BYTES = 2**27


def packaged_file(package: str, place: str, missing: str) -> Path:
    """Returns the path of `place` in an installed package, which is found without importing it.

    Raises MissingExtraError with the message `missing` if the package is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(missing)
    return Path(found.submodule_search_locations[0]) / place


def read_published(path: Path, sha256: str, what: str, remedy: str) -> bytes:
    """Reads a file of at most `MAX_BYTES`, which must be `what` was published: its SHA-256 is compared.

    Raises CheckpointError, which names the file and ends with the remedy, if it cannot be read or is another one.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {remedy}") from error
    if (found := bytes_hash(content)) != sha256:
        raise CheckpointError(f"{path} has SHA-256 {found[:16]}…, not {sha256[:16]}… of {what}: {remedy}")
    return content
