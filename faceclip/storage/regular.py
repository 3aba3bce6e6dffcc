"""Reads files that others name: only regular ones, and only up to a size limit.

A FIFO waits for a writer, a device such as /dev/zero never ends, and a small JSON file may nest without end.
"""

import json
import math
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from faceclip.errors import CheckpointError

MAX_SETTINGS = 2**24  # bytes of a JSON file of settings; those of a model in pieces name every tensor
MAX_NUMBER = 2**53  # whole numbers beyond it are no sizes of anything


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a regular file for reading, links followed.

    Raises OSError, as `open` does, and for anything that is not a regular file: FIFOs, devices, sockets and folders.
    """
    # Without O_NONBLOCK, opening a FIFO waits until somebody writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a regular file but a folder, a device or a pipe")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, most: int = MAX_SETTINGS) -> bytes:
    """Reads a regular file. Raises OSError as `open_regular` does, and for more than `most` bytes."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(f"it is larger than {most:,} bytes")
    return data


def parse_json(data: bytes | str) -> Any:
    """Parses JSON that others wrote. Raises ValueError for texts that are no JSON or nest too deeply."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_settings(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """Reads the JSON object of a settings file.

    infinite: whether infinities are allowed, as diffusers writes them for schedulers; NaN never is.

    Raises:
        CheckpointError: the file is missing, not regular, larger than `MAX_SETTINGS`, no JSON, nested too deeply, holds
            numbers that are no sizes, or no object; the message names the file.
    """
    remedy = "save or fetch it again"
    try:
        data = read_regular(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; {remedy}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise CheckpointError(f"{path} cannot be read ({error}); {remedy}") from error
    try:
        content = json.loads(data)
        _check_numbers(content, "", infinite)
    except RecursionError as error:
        raise CheckpointError(f"{path} is not valid JSON (it nests too deeply); {remedy}") from error
    except ValueError as error:  # of JSON, of UTF-8, and of numbers with more digits than Python reads
        raise CheckpointError(f"{path} is not valid JSON of settings ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not fields by name; {remedy}")
    return content


def _check_numbers(value: Any, field: str, infinite: bool) -> None:
    if isinstance(value, dict):
        for name, part in value.items():
            _check_numbers(part, f"{field}.{name}" if field else name, infinite)
    elif isinstance(value, list):
        for part in value:
            _check_numbers(part, field, infinite)
    elif isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not infinite)):
        raise ValueError(f"{field} is {value}, not a finite number")
    elif isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError(f"{field} is a whole number beyond {MAX_NUMBER:,}")
