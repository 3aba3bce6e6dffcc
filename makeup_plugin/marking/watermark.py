"""An invisible mark that says "made by this software": spread over many frequencies of the whole picture.

The brightness, reduced to a square grid (64x64, or 128x128 from 256 px on), is taken to the frequency domain
(DCT-II). A fixed key gives every coefficient beyond the lowest a sign s. Coefficients c are multiplied by
their frequency, which evens out the 1/f fall of pictures, and clipped at their median magnitude, so that a
few large ones do not decide: w. The statistic

    z = sum(s w) / sqrt(sum(w^2))

of an unmarked picture is a sum with random signs, so P(z > t) <= exp(-t^2 / 2) over keys whatever the picture
holds (Hoeffding 1963): at the threshold 6 less than 2e-8 per grid. Embedding pushes those coefficients whose
magnitude is small onto their sign (the cheapest change; informed embedding, Malvar & Florencio 2003): enough for
z = 8, and in smooth pictures, where that costs next to nothing, up to a change of 42 dB.

Survives JPEG, rescaling and changes of brightness and contrast; does not survive cropping, rotation,
mirroring or regeneration by another model, and whoever reads this file can remove it. It carries one bit:
metadata say the rest.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray
from PIL import Image

METHOD = "dct-signs/1"
THRESHOLD = 6.0
_TARGET = 8.0
_GRIDS = (64, 128)
# From this side on the finer grid is used: four times the coefficients need half the change for the same z.
_FINE_FROM = 256
_LOWEST = 4.0
# Mean square of the least change: 42 dB.
_LEAST_CHANGE = 10**-4.2
# Strongest push, in medians of the coefficients' magnitudes.
_STRONGEST = 30.0
_LEVELS = 4096  # pushes that are distinguished
_KEY = b"FaceMakeUp generated image 1"
_LUMA = np.array([0.299, 0.587, 0.114])


def embed(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """The picture (H,W,3) in [0,1] with the mark, rounded to 8 bits; deterministic."""
    image = np.asarray(image, dtype=np.float64)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be (H, W, 3), got {image.shape}")
    grid = _GRIDS[1] if min(image.shape[:2]) >= _FINE_FROM else _GRIDS[0]
    values = _coefficients(image, grid)
    scale = max(float(np.median(np.abs(values))), 1e-3)
    # The weakest push that reaches the target after rounding. In smooth pictures that would be less than JPEG removes,
    # so it also has to use up a change that nobody sees. The spectrum alone says nearly where that is; what it does not
    # know, rounding and the limits of brightness, is measured at every try and corrected for.
    marked: dict[int, NDArray[np.float64]] = {}
    low, high, corrections = 0, _LEVELS, (1.0, 1.0)
    difference = np.empty_like(image)
    for tries in count():
        if high - low <= 1:
            break
        level = _expected_level(image, values, scale, grid, corrections) if tries < 6 else (low + high) // 2
        level = min(max(level, low + 1), high - 1)
        push = level * _STRONGEST / _LEVELS * scale
        marked[level] = _push(image, values, push, grid)
        np.subtract(marked[level], image, out=difference)
        change, z = np.square(difference, out=difference).mean(), _score_on(marked[level], grid)
        low, high = (low, level) if change > _LEAST_CHANGE and z > _TARGET else (level, high)
        expected = _expected_change(image, values, push, grid), _statistic(_pushed(values, push, grid))
        corrections = float(change / expected[0]), float(z / expected[1])
    if high not in marked:
        marked[high] = _push(image, values, high * _STRONGEST / _LEVELS * scale, grid)
    return marked[high].astype(np.float32)


def _expected_level(
    image: NDArray[np.floating],
    values: NDArray[np.floating],
    scale: float,
    grid: int,
    corrections: tuple[float, float],
) -> int:
    """The weakest push, of `_LEVELS`, whose spectrum reaches the target, with `corrections` of change and statistic."""
    low, high = 0, _LEVELS
    while high - low > 1:
        middle = (low + high) // 2
        push = middle * _STRONGEST / _LEVELS * scale
        enough = _expected_change(image, values, push, grid) * corrections[0] > _LEAST_CHANGE
        enough = enough and _statistic(_pushed(values, push, grid)) * corrections[1] > _TARGET
        low, high = (low, middle) if enough else (middle, high)
    return high


def score(image: NDArray[np.floating]) -> float:
    """The statistic z of a picture (H,W,3) in [0,1], the larger of both grids; below 6 without a mark."""
    image = np.asarray(image, dtype=np.float64)
    return max(_score_on(image, grid) for grid in _GRIDS if grid == _GRIDS[0] or min(image.shape[:2]) >= grid)


def detect(image: NDArray[np.floating], *, threshold: float = THRESHOLD) -> bool:
    """True when the mark is found."""
    return score(image) > threshold


def _score_on(image: NDArray[np.floating], grid: int) -> float:
    return _statistic(_signed(_coefficients(image, grid), grid))


def _signed(values: NDArray[np.floating], grid: int) -> NDArray[np.float64]:
    """Coefficients times their signs."""
    return _carriers(grid)[0] * values


def _statistic(along: NDArray[np.floating]) -> float:
    """z of coefficients times their signs."""
    limit = np.median(np.abs(along))
    clipped = np.clip(along, -limit, limit)
    norm = float(np.sqrt(np.square(clipped).sum()))
    return float(clipped.sum() / norm) if norm > 0 else 0.0


def _pushed(values: NDArray[np.floating], level: float, grid: int) -> NDArray[np.float64]:
    """Coefficients times their signs after a push: none is below `level` that was within ± `level`."""
    along = _signed(values, grid)
    return np.where(np.abs(along) < level, level, along)


def _change(values: NDArray[np.floating], level: float, grid: int) -> NDArray[np.float64]:
    """The spectrum (grid, grid) that a push adds."""
    signs, frequency, rows, columns = _carriers(grid)
    spectrum = np.zeros((grid, grid))
    spectrum[rows, columns] = signs * (_pushed(values, level, grid) - signs * values) / frequency
    return spectrum


def _expected_change(image: NDArray[np.floating], values: NDArray[np.floating], level: float, grid: int) -> float:
    """Mean squared change of the pixels by a push and by rounding to 8 bits."""
    height, width = image.shape[:2]
    spectrum = _change(values, level, grid)
    energy = (_overlaps(height, grid) @ spectrum * (spectrum @ _overlaps(width, grid))).sum()
    return float(energy) / (height * width) + 1 / (12 * 255**2)


def _push(image: NDArray[np.floating], values: NDArray[np.floating], level: float, grid: int) -> NDArray[np.float64]:
    """The picture with every coefficient of magnitude below `level` moved to sign times `level`, in 8-bit
    steps.
    """
    height, width = image.shape[:2]
    delta = _synthesis(height, grid).T @ _change(values, level, grid) @ _synthesis(width, grid)
    marked = image + delta[..., None]
    np.clip(marked, 0, 1, out=marked)
    marked *= 255
    np.round(marked, out=marked)
    marked /= 255
    return marked


def _coefficients(image: NDArray[np.floating], grid: int) -> NDArray[np.float64]:
    """The carriers' DCT coefficients times their frequency."""
    luma = (image @ _LUMA).astype(np.float32)
    if luma.shape != (grid, grid):
        luma = np.asarray(Image.fromarray(luma).resize((grid, grid), Image.Resampling.BOX))
    _, frequency, rows, columns = _carriers(grid)
    basis = _cosines(grid, grid)
    return (basis @ luma.astype(np.float64) @ basis.T)[rows, columns] * frequency


@lru_cache(maxsize=len(_GRIDS))
def _carriers(grid: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Signs, frequencies and indices of the coefficients that carry the mark."""
    v, u = np.mgrid[0:grid, 0:grid]
    radius = np.hypot(u, v)
    rows, columns = np.nonzero((radius >= _LOWEST) & (radius <= grid))
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(_KEY).digest(len(rows) // 8 + 1), dtype=np.uint8))
    return bits[: len(rows)] * 2.0 - 1.0, radius[rows, columns], rows, columns


@lru_cache(maxsize=16)
def _cosines(size: int, grid: int) -> NDArray[np.float64]:
    """The first `grid` rows of the DCT-II over `size` positions, scaled so that grid = size is
    orthonormal.
    """
    k, n = np.mgrid[0:grid, 0:size]
    matrix = np.cos(np.pi * (n + 0.5) * k / size) * np.sqrt(2 / grid)
    matrix[0] /= np.sqrt(2)
    return matrix


def _synthesis(size: int, grid: int) -> NDArray[np.float64]:
    """`_cosines`, raised where averaging size/grid positions lowers a frequency, so that it reads back
    whole.
    """
    ratio = size / grid
    if ratio <= 1:
        return _cosines(size, grid)
    frequency = np.arange(1, grid) / (2 * grid)
    # Gain of averaging r samples of a cosine: sin(pi f) / (r sin(pi f / r)).
    gain = np.sin(np.pi * frequency) / (ratio * np.sin(np.pi * frequency / ratio))
    return _cosines(size, grid) / np.concatenate([[1.0], gain])[:, None]


@lru_cache(maxsize=16)
def _overlaps(size: int, grid: int) -> NDArray[np.float64]:
    """Inner products (grid, grid) of the rows of `_synthesis`."""
    rows = _synthesis(size, grid)
    return rows @ rows.T
