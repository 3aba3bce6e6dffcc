"""Measures of pixels alone: size, colour, exposure, blur, and the perceptual hash."""

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from faceclip.data.curate.measures import Figures, Measure, Picture

VIEW = 256  # px, shorter side at which blur is measured, so that sharpness does not depend on the picture's size
COLOR_VIEW = 128  # px, shorter side at which colours are measured
DARK, BRIGHT = 8, 247  # of 255: levels below and above which detail is lost
FLAT = 1e-3  # variance of grey levels (in 255ths, squared) below which the sharpness is defined as 0


def size(picture: Picture) -> Figures:
    """Measures the size in pixels (width, height, side: the shorter one, pixels: their product), the aspect (longer
    side divided by the shorter one) and the size of the file in bytes."""
    height, width = picture.pixels.shape[:2]
    return {
        "width": width,
        "height": height,
        "side": min(height, width),
        "pixels": height * width,
        "aspect": max(height, width) / min(height, width),
        "bytes": picture.encoded,
    }


def color(picture: Picture) -> Figures:
    """Measures how far a picture is from grey.

    channel_deviation: standard deviation of the three channels, averaged over pixels (0 to 120); 0 for grey pictures.
    tint_deviation: the same after subtracting the colour that the brightness predicts, so that sepia and other toned
    pictures are near 0, too. colorfulness: Hasler and Süsstrunk 2003.
    """
    side = min(COLOR_VIEW, *picture.pixels.shape[:2])
    pixels = cv2.resize(picture.pixels, _view(picture.pixels, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    first, second = red - green, (red + green) / 2 - blue
    spread = np.hypot(first.std(), second.std())
    level = _mean(pixels)
    chroma = pixels - level[..., None]
    return {
        "channel_deviation": float(np.sqrt(_mean(np.square(chroma))).mean()),
        "tint_deviation": float(np.sqrt(_mean(np.square(chroma - _toned(level, chroma)))).mean()),
        "colorfulness": float(spread + 0.3 * np.hypot(first.mean(), second.mean())),
    }


def _mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the mean (H, W) over the three channels: to the bit `values.mean(axis=2)`, which takes longer."""
    return (values[..., 0] + values[..., 1] + values[..., 2]) / np.float32(3)


def _toned(level: NDArray[np.float32], chroma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Predicts the chroma (H, W, 3) from each pixel's brightness (H, W), by a quadratic function per channel.

    In a toned picture this prediction explains all of the chroma.
    """
    level = level.reshape(-1) / 255
    basis = np.stack([np.ones_like(level), level, level**2], axis=1)
    solved = np.linalg.lstsq(basis.T @ basis, basis.T @ chroma.reshape(-1, 3), rcond=None)[0]
    return (basis @ solved).reshape(chroma.shape)


def exposure(picture: Picture) -> Figures:
    """Measures mean and standard deviation of the luma (0 to 1), and the shares of black and of white pixels."""
    levels = np.bincount(picture.grey.reshape(-1), minlength=256) / picture.grey.size
    value = np.arange(256) / 255
    mean = float(levels @ value)
    return {
        "luminance": mean,
        "contrast": float(np.sqrt(levels @ (value - mean) ** 2)),
        "dark_share": float(levels[:DARK].sum()),
        "bright_share": float(levels[BRIGHT + 1 :].sum()),
    }


def blur(picture: Picture) -> Figures:
    """Measures the `sharpness_of` the middle (60 % of each side) of the picture, scaled to a shorter side of `VIEW`."""
    height, width = picture.grey.shape
    top, left = height // 5, width // 5
    middle = picture.grey[top : max(height - top, top + 1), left : max(width - left, left + 1)]
    return {
        "sharpness": sharpness_of(cv2.resize(middle, _view(middle, round(0.6 * VIEW)), interpolation=_kind(middle)))
    }


def sharpness_of(grey: NDArray[np.uint8]) -> float:
    """Returns the variance of the Laplacian divided by that of the picture `grey` (H, W): about .1 for fine detail and
    .001 for blur.

    The ratio does not depend on the contrast. It is 0 for a picture of a single level.
    """
    values = grey.astype(np.float32)
    variance = float(values.var())
    return float(cv2.Laplacian(values, cv2.CV_32F).var()) / variance if variance > FLAT else 0.0


def hashes(picture: Picture) -> Figures:
    """Computes the `perceptual_hash` of the whole picture."""
    return {"hash": perceptual_hash(picture.grey)}


def perceptual_hash(grey: NDArray[np.uint8]) -> int:
    """Returns a hash of 64 bits, as a signed integer, that scaling and JPEG compression hardly change.

    Each bit says whether one of the 8 × 8 lowest frequencies of the cosine transform at 32 px is above their median.
    """
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    slow = cv2.dct(small)[:8, :8]
    return int(np.packbits(slow > np.median(slow)).view(">i8")[0])


def _view(pixels: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Returns the width and height that make the shorter one `side` px, at the same aspect."""
    height, width = pixels.shape[:2]
    scale = side / min(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _kind(pixels: NDArray[np.uint8]) -> int:
    return cv2.INTER_AREA if min(pixels.shape[:2]) > 0.6 * VIEW else cv2.INTER_LINEAR


_WHOLE, _NUMBER = pa.int64(), pa.float32()
SIZE = Measure(
    name="size",
    version=1,
    compute=size,
    columns=dict.fromkeys(("width", "height", "side", "pixels"), _WHOLE) | {"aspect": _NUMBER, "bytes": _WHOLE},
)
COLOR = Measure(
    name="color",
    version=1,
    compute=color,
    columns=dict.fromkeys(("channel_deviation", "tint_deviation", "colorfulness"), _NUMBER),
)
EXPOSURE = Measure(
    name="exposure",
    version=1,
    compute=exposure,
    columns=dict.fromkeys(("luminance", "contrast", "dark_share", "bright_share"), _NUMBER),
)
BLUR = Measure(name="blur", version=1, compute=blur, columns={"sharpness": _NUMBER})
HASH = Measure(name="hash", version=1, compute=hashes, columns={"hash": _WHOLE})
