"""Reading pictures from untrusted sources: header first, then a pixel cap, and only then the decoder."""

import io
import logging
import os
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from faceclip.errors import BAD_INPUT, ImageTooLargeError, UnreadableImageError
from faceclip.storage.regular import open_regular

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.generic]

logger = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
_STRIP = 256  # rows that are converted at once: large pictures need little more memory than their pixels
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(//|.*;base64,)")
# Raster formats only: others (EPS, PDF…) would start external programs or have no fixed size.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_DAMAGE = (*BAD_INPUT, OSError, SyntaxError, EOFError, struct.error)  # Pillow's decoders report damage by these
_ORIENTATION = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def describe_source(source: Any) -> str:
    """Returns a name for error messages: the path, or the kind of object."""
    if isinstance(source, str | os.PathLike):
        name = str(source)
        return f"image file {name if len(name) <= 300 else f'{name[:300]}…'!r}"
    if isinstance(source, bytes):
        return f"image of {len(source):,} encoded bytes"
    if isinstance(source, Image.Image):
        return f"PIL image ({source.mode}, {source.width}×{source.height})"
    if isinstance(source, np.ndarray):
        return f"image array ({source.dtype}, shape {source.shape})"
    return f"image of type {type(source).__name__}"


def load_image(
    source: ImageSource, *, max_pixels: int | None = None, name: str | None = None, opaque: bool = False
) -> NDArray[np.uint8]:
    """Reads a picture as uint8 RGB (H, W, 3), upright by its EXIF orientation.

    `source` is a path, the bytes of an image file, a PIL image, or an array (H, W), (H, W, 1|3|4), uint8 or float
    in [0, 1]. Transparency is laid over white; with `opaque`, as for masks, where it may mean black as well, it is
    refused. 16-bit grey is scaled to 8 bits. `name` replaces the source's description in messages. `max_pixels` is
    `MAX_PIXELS` by default for all that must be decoded; pixels in memory are then taken in any number.

    Raises `UnreadableImageError` (missing, truncated, not a regular file, an address, not a picture, wrong shape or
    dtype) and `ImageTooLargeError` (more than `max_pixels`, found in the header, before anything is decoded).
    """
    name = name or describe_source(source)
    cap = MAX_PIXELS if max_pixels is None else max_pixels
    if isinstance(source, str | os.PathLike):
        return _read_path(source, cap, name, opaque)
    if isinstance(source, bytes):
        return _read_file(io.BytesIO(source), cap, name, opaque)
    if isinstance(source, Image.Image):
        waiting = bool(getattr(source, "tile", None))  # parts of the file that Pillow has not decoded yet
        _check_size(source.width, source.height, cap if waiting else max_pixels, name)
        return _decode(source, name, opaque)
    return _from_array(source, max_pixels, name, opaque)


def _check_size(width: int, height: int, max_pixels: int | None, name: str) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name} has {width}×{height} = {width * height:,} pixels, the limit is {max_pixels:,}: shrink the "
            "picture, or, if you trust its source, read it by faceclip.faces.load_image(PATH, max_pixels=N) and give "
            "the array (for a training, set data.max_pixels)"
        )
    if width < 1 or height < 1:
        raise UnreadableImageError(f"{name} is empty ({width}×{height}): give a picture with pixels")


def _read_path(path: str | os.PathLike[str], max_pixels: int, name: str, opaque: bool) -> NDArray[np.uint8]:
    try:
        with open_regular(Path(path)) as file:
            return _read_file(file, max_pixels, name, opaque)
    except FileNotFoundError as error:
        if _ADDRESS.match(str(path)):
            raise UnreadableImageError(
                f"{name} is an address, and nothing is downloaded here: fetch the picture and give the path of its file"
            ) from error
        raise UnreadableImageError(f"{name} does not exist: check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        if isinstance(error, UnreadableImageError | ImageTooLargeError):
            raise
        raise UnreadableImageError(f"{name} cannot be opened ({error}): give the path of a picture") from error


def _read_file(file: BinaryIO, max_pixels: int, name: str, opaque: bool) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            # Our own cap replaces Pillow's, which only warns below twice its limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image.width, image.height, max_pixels, name)
                return _decode(image, name, opaque)
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{name} is rejected before decoding ({error}): shrink the picture") from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{name} is not a picture in one of {', '.join(FORMATS)}") from error
    except _DAMAGE as error:
        if isinstance(error, UnreadableImageError | ImageTooLargeError):
            raise
        raise UnreadableImageError(f"{name} cannot be read ({error}): the file may be damaged or private") from error


def _decode(image: Image.Image, name: str, opaque: bool) -> NDArray[np.uint8]:
    try:
        image.load()
        image = _upright(image, name)
        if image.mode == "I":
            image = _of_integers(image, name)
        if image.mode in ("I;16", "I;16B", "I;16L", "I"):
            return _in_strips(image, _scaled)
        if image.mode == "F":
            raise UnreadableImageError(f"{name} holds floating-point samples of unknown range: convert it to 8 bits")
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            if opaque and _is_transparent(image):
                raise UnreadableImageError(f"{name} is transparent in places: fill these with black or white")
            return _in_strips(image, _over_white)
        return _in_strips(image, lambda strip: np.asarray(strip.convert("RGB")))
    except _DAMAGE as error:
        if isinstance(error, UnreadableImageError):
            raise
        raise UnreadableImageError(f"{name} is damaged, closed, or of a mode without RGB ({error})") from error


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Returns RGB pixels (H, W, 3) of a picture that `convert` gives strip by strip."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        bottom = min(top + _STRIP, height)
        pixels[top:bottom] = convert(image.crop((0, top, width, bottom)))
    return pixels


def _scaled(strip: Image.Image) -> NDArray[np.uint8]:
    # Pillow's own conversion clips at 255 instead of scaling.
    grey = np.asarray(strip).astype(np.float64)
    return _grey_to_rgb(np.clip(grey / 257 + 0.5, 0, 255).astype(np.uint8))


def _of_integers(image: Image.Image, name: str) -> Image.Image:
    """Returns grey of 32 bits as grey of 8 bits, where it holds no more, or else as it is, for 16 bits."""
    low, high = (int(value) for value in image.getextrema())  # type: ignore[arg-type]
    if low < 0 or high > 65535:
        raise UnreadableImageError(f"{name} holds grey values from {low} to {high}: convert it to 8 or 16 bits")
    return image.convert("L") if high <= 255 else image


def _is_transparent(image: Image.Image) -> bool:
    return image.convert("LA" if image.mode == "La" else "RGBA").getchannel("A").getextrema()[0] != 255


def _over_white(strip: Image.Image) -> NDArray[np.uint8]:
    strip = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
    white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, strip).convert("RGB"))


def _upright(image: Image.Image, name: str) -> Image.Image:
    # Not by `ImageOps.exif_transpose`, which writes the EXIF block anew and fails at tags that have nothing to do with
    # the orientation.
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE as error:  # of the EXIF block alone: the pixels are there
        logger.warning("%s has a damaged EXIF block (%s): it is taken as it lies, not turned upright", name, error)
        return image
    return image if turn is None else image.transpose(turn)


def _from_array(array: NDArray[Any], max_pixels: int | None, name: str, opaque: bool) -> NDArray[np.uint8]:
    if not isinstance(array, np.ndarray):
        raise UnreadableImageError(f"{name}: expected a path, a PIL image or a numpy array")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UnreadableImageError(f"{name}: expected shape (H, W) or (H, W, 1|3|4), channels last")
    _check_size(array.shape[1], array.shape[0], max_pixels, name)
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise UnreadableImageError(f"{name}: floating-point pictures must be finite and in [0, 1]")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise UnreadableImageError(f"{name}: expected uint8 or floating point in [0, 1]")
    if array.ndim == 3 and array.shape[2] == 4:
        return _decode(Image.fromarray(array, "RGBA"), name, opaque)
    if array.ndim == 3 and array.shape[2] == 3:
        return np.ascontiguousarray(array)
    return _grey_to_rgb(array.reshape(array.shape[:2]))


def _grey_to_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)
