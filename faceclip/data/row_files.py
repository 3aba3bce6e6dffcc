"""Opens files that rows name: plain paths below the data's folders, members of zip files there, files of the hub data
set.

Rows are not trusted. No other protocol, chain of protocols, place or kind of file is opened or requested.
"""

import re
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

import datasets
from huggingface_hub import HfFileSystem
from huggingface_hub.constants import HF_HUB_CACHE

from faceclip.data.cells import RejectedRecord
from faceclip.data.image_store import ARCHIVE_ERRORS, MAX_BYTES, is_file, with_slashes
from faceclip.storage.regular import open_regular

_ZIP_ERRORS = (*ARCHIVE_ERRORS, OSError, ValueError, RuntimeError, NotImplementedError)  # encrypted; unknown methods


def find_file(name: str, base: Path | None, roots: Sequence[Path], key: str) -> Path:
    """Returns the regular file that a row names, with links resolved. base: folder of relative names.

    Raises RejectedRecord for a file that is not below one of `roots`, does not exist, or is no regular file.
    """
    try:
        path = (base or Path()) / with_slashes(name, base or Path())
        real = path.resolve()
        inside = any(real.is_relative_to(root.resolve()) for root in (*roots, *([base] if base else [])))
    except (ValueError, OSError, RuntimeError) as error:  # a null byte, or links in a circle
        raise RejectedRecord("no_image", f"{key}: {_short(name)} is no path ({error})") from error
    if not inside:
        where = ", ".join(map(str, roots)) or "any folder of this data set"
        raise RejectedRecord("no_image", f"{key}: {_short(name)} lies outside of {where}: copy it there")
    if not is_file(real):
        raise RejectedRecord("no_image", f"{key}: {_short(str(path))} does not exist or is no regular file")
    return real


def read_file(path: Path, key: str) -> bytes:
    """Reads a regular file. Raises RejectedRecord for anything else and for more than `MAX_BYTES`."""
    try:
        with open_regular(path) as file:
            return _capped(file.read(MAX_BYTES + 1), str(path), key)
    except OSError as error:
        raise RejectedRecord("unreadable_image", f"{key}: {path} cannot be read ({error})") from error


def read_address(address: str, roots: Sequence[Path], hub: str, key: str) -> bytes:
    """Reads the picture at an address of `datasets`: `zip://MEMBER::FILE` of a zip file below `roots`, a file of the
    hub data set `hub`, or a member of a zip file there.

    Raises RejectedRecord for every other address before anything is opened, and for unreadable files.
    """
    member, origin = "", address
    if match := re.fullmatch(r"zip://(.+?)::(.+)", address, re.DOTALL):
        member, origin = match.groups()
    plain = not member or is_plain(member)
    of_hub = bool(hub) and plain and _is_of_hub(origin, hub)
    if not of_hub and (not plain or not member or "://" in origin or "::" in origin):
        raise RejectedRecord(
            "no_image", f"{key}: {_short(address)} is not downloaded: fetch the picture and set data.images"
        )
    try:
        if not of_hub:
            file = find_file(origin, None, roots, key)
            facts = file.stat()
            return _read_member(_local_zip(file, facts.st_size, facts.st_mtime_ns), member, address, key)
        if member:
            return _read_member(_hub_zip(origin), member, address, key)
        with HfFileSystem().open(origin, "rb") as file:
            return _capped(file.read(MAX_BYTES + 1), address, key)
    except KeyError as error:
        raise RejectedRecord("no_image", f"{key}: {_short(address)}: no such member") from error
    except _ZIP_ERRORS as error:
        raise RejectedRecord("unreadable_image", f"{key}: {_short(address)} cannot be read ({error})") from error


def hub_folders(hub: str) -> list[Path]:
    """Returns the folders to which `datasets` downloads files of a hub data set; empty if `hub` is empty."""
    if not hub:
        return []
    own = Path(HF_HUB_CACHE) / f"datasets--{hub.replace('/', '--')}"
    return [own, Path(datasets.config.EXTRACTED_DATASETS_PATH)]


def is_plain(name: str) -> bool:
    """Returns whether a name is a relative path that stays below its start on every operating system."""
    path, other = PurePosixPath(name), PureWindowsPath(name)
    foreign = "::" in name or "://" in name or "\0" in name or other.drive or other.is_absolute()
    return not (foreign or path.is_absolute() or ".." in (*path.parts, *other.parts))


def _is_of_hub(address: str, hub: str) -> bool:
    match = re.fullmatch(rf"hf://datasets/{re.escape(hub)}(@[^/:\\]+)?/(.+)", address, re.DOTALL)
    return match is not None and is_plain(match[2])


@lru_cache(maxsize=4)
def _local_zip(path: Path, size: int, changed: int) -> zipfile.ZipFile:
    """Returns an open zip file. Size and modification time distinguish it from another file of this name."""
    return zipfile.ZipFile(path)


@lru_cache(maxsize=4)
def _hub_zip(address: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(HfFileSystem().open(address, "rb"))


def _read_member(archive: zipfile.ZipFile, member: str, address: str, key: str) -> bytes:
    with archive.open(archive.getinfo(member)) as file:
        return _capped(file.read(MAX_BYTES + 1), address, key)


def _capped(data: bytes, name: str, key: str) -> bytes:
    if len(data) > MAX_BYTES:
        raise RejectedRecord("image_too_large", f"{key}: {_short(name)} has more than {MAX_BYTES:,} bytes")
    return data


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
