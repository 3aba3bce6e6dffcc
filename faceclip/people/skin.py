"""The skin of one identity as a texture over the frontal plane of the mean head: freckles, moles, lines, brows."""

import cv2
import numpy as np

from faceclip.people.geometry import EYE_CENTER
from faceclip.people.parameters import Identity

SIZE = 320
LEFT, TOP, EXTENT = -0.9, 8.3, 1.8  # decimetres: x in [-0.9, 0.9], y downwards from 8.3
HEIGHT = 2.25


def to_texture(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the texture pixels of points of the mean head, given their frontal x and y."""
    scale = (SIZE - 1) / EXTENT
    return (x - LEFT) * scale, (TOP - y) * scale


def _dots(canvas: np.ndarray, points: np.ndarray, radii: np.ndarray, strengths: np.ndarray) -> None:
    u, v = to_texture(points[:, 0], points[:, 1])
    for x, y, radius, strength in zip(u, v, radii * (SIZE - 1) / EXTENT, strengths, strict=True):
        center, size = (round(x * 16), round(y * 16)), max(1, round(radius * 16))
        cv2.circle(canvas, center, size, float(strength), -1, cv2.LINE_AA, 4)


def paint_skin(identity: Identity) -> tuple[np.ndarray, np.ndarray]:
    """Paints the texture of an identity, deterministic in `identity.detail_seed`.

    Returns:
        multiplier (H, W, 3) float32 on the skin tone; brow coverage (H, W) float32 in [0, 1].
    """
    rng = np.random.Generator(np.random.Philox(identity.detail_seed))
    rows = int(SIZE * HEIGHT / EXTENT)
    dark = np.zeros((rows, SIZE), np.uint8)

    count = int(identity.freckles * 160)
    spots = np.stack([rng.normal(0, 0.3, count), rng.normal(7.0, 0.13, count)], 1)
    _dots(dark, spots, rng.uniform(0.008, 0.020, count), rng.uniform(50, 120, count))
    freckles = cv2.GaussianBlur(dark, (0, 0), 0.8).astype(np.float32) / 255

    moles = np.zeros((rows, SIZE), np.uint8)
    count = int(rng.integers(0, 6))
    places = np.stack([rng.uniform(-0.62, 0.62, count), rng.uniform(6.35, 7.85, count)], 1)
    _dots(moles, places, rng.uniform(0.018, 0.042, count), rng.uniform(140, 230, count))
    mark = np.zeros((rows, SIZE), np.uint8)
    if rng.random() < 0.25:  # a birthmark: a soft blotch
        centre = np.asarray([[rng.uniform(-0.55, 0.55), rng.uniform(6.5, 7.9)]])
        blob = centre + rng.normal(0, 0.05, (9, 2))
        _dots(mark, blob, rng.uniform(0.04, 0.08, 9), np.full(9, 110.0))
    moles = np.maximum(moles.astype(np.float32), cv2.GaussianBlur(mark, (0, 0), 2.0)) / 255

    lines = np.zeros((rows, SIZE), np.uint8)
    if identity.age_lines > 0:
        level = int(40 + 90 * identity.age_lines)
        for side in (-1, 1):  # nasolabial folds, crow's feet, bags
            fold = np.asarray([(0.14, 6.92), (0.22, 6.8), (0.28, 6.66), (0.29, 6.55)]) * (side, 1)
            _curve(lines, fold + rng.normal(0, 0.01, fold.shape), level)
            for k in range(3):
                start = np.asarray([0.48, 7.31 + 0.05 * (k - 1)])
                _curve(lines, np.stack([start, start + np.array([0.1, 0.04 * (k - 1)])]) * (side, 1), level // 2)
            bag = np.asarray([(0.17, 7.2), (0.29, 7.16), (0.42, 7.21)]) * (side, 1)
            _curve(lines, bag, level // 2)
        for k in range(int(1 + 3 * identity.age_lines)):
            y = 7.68 + 0.075 * k + rng.normal(0, 0.01)
            wave = np.stack([np.linspace(-0.4, 0.4, 9), y + 0.02 * np.cos(np.linspace(-2, 2, 9))], 1)
            _curve(lines, wave + rng.normal(0, 0.006, wave.shape), level // 2)
    lines = cv2.GaussianBlur(lines, (0, 0), 1.2).astype(np.float32) / 255

    blotches = cv2.resize(rng.normal(0, 1, (9, 7)).astype(np.float32), (SIZE, rows), interpolation=cv2.INTER_CUBIC)
    redness = _cheek_glow(rows) * rng.uniform(0.02, 0.16)
    multiplier = np.stack([1 - 0.4 * freckles, 1 - 0.62 * freckles, 1 - 0.75 * freckles], -1)
    multiplier *= (1 - np.asarray([0.62, 0.72, 0.76]) * moles[..., None]) * (1 - 0.55 * lines[..., None])
    multiplier *= 1 + 0.03 * blotches[..., None] + redness[..., None] * np.asarray([0.4, -1.0, -0.8])
    return multiplier.astype(np.float32), _brows(identity, rows, rng)


def _curve(canvas: np.ndarray, points: np.ndarray, level: int) -> None:
    u, v = to_texture(points[:, 0], points[:, 1])
    polyline = np.round(np.stack([u, v], 1) * 16).astype(np.int32)[None]
    cv2.polylines(canvas, polyline, False, level, 2, cv2.LINE_AA, 4)


def _places(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns |x| and y (rows, SIZE) of the texture's pixels on the mean head."""
    v, u = np.mgrid[:rows, :SIZE].astype(np.float32)
    scale = EXTENT / (SIZE - 1)
    return np.abs(u * scale + LEFT), TOP - v * scale


def _cheek_glow(rows: int) -> np.ndarray:
    x, y = _places(rows)
    return np.exp(-(((x - 0.42) / 0.17) ** 2) - ((y - 6.95) / 0.16) ** 2)


def blush_mask() -> np.ndarray:
    """Returns where blush is worn, (H, W) in [0, 1], in texture coordinates."""
    return _cheek_glow(int(SIZE * HEIGHT / EXTENT))


def eyeshadow_mask() -> np.ndarray:
    """Returns where eyeshadow is worn, (H, W) in [0, 1], in texture coordinates."""
    x, y = _places(int(SIZE * HEIGHT / EXTENT))
    return np.exp(-(((x - EYE_CENTER[0] - 0.02) / 0.17) ** 2) - ((y - EYE_CENTER[1] - 0.07) / 0.055) ** 2)


def lash_mask() -> np.ndarray:
    """Returns dark rims of the lids, (H, W) in [0, 1], in texture coordinates."""
    rows = int(SIZE * HEIGHT / EXTENT)
    canvas = np.zeros((rows, SIZE), np.uint8)
    for side in (-1, 1):
        t = np.linspace(0.05, np.pi - 0.05, 15)
        upper = np.stack([side * (EYE_CENTER[0] + 0.150 * np.cos(t)), EYE_CENTER[1] - 0.005 + 0.062 * np.sin(t)], 1)
        _curve(canvas, upper, 220)
        _curve(canvas, upper + np.array([0, 0.008]), 220)
        lower = np.stack([side * (EYE_CENTER[0] + 0.14 * np.cos(t)), EYE_CENTER[1] - 0.01 - 0.05 * np.sin(t)], 1)
        _curve(canvas, lower, 70)
    return cv2.GaussianBlur(canvas, (0, 0), 0.7).astype(np.float32) / 255


def _brows(identity: Identity, rows: int, rng: np.random.Generator) -> np.ndarray:
    canvas = np.zeros((rows, SIZE), np.uint8)
    half = 0.034 * identity.brow_thickness
    lift = rng.normal(0, 0.02)
    for side in (-1, 1):
        t = np.linspace(0, 1, 17)
        x = 0.13 + 0.40 * t
        y = 7.475 + lift + 0.09 * np.sin(np.pi * (0.15 + 0.62 * t)) + 0.035 * identity.brow_arch * np.sin(np.pi * t)
        width = half * np.clip(1.15 - 0.75 * t, 0.2, 1) * np.clip(0.5 + 6 * t, 0, 1)
        outline = np.concatenate([np.stack([side * x, y + width], 1), np.stack([side * x, y - width], 1)[::-1]])
        u, v = to_texture(outline[:, 0], outline[:, 1])
        cv2.fillPoly(canvas, np.round(np.stack([u, v], 1) * 16).astype(np.int32)[None], 255, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(canvas, (0, 0), 1.2).astype(np.float32) / 255
