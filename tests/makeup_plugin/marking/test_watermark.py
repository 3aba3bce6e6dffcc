"""The mark by golden numbers: another key, grid or weight would not find what earlier releases marked."""

import numpy as np
import pytest

from makeup_plugin.marking import watermark


def slope(height: int, width: int) -> np.ndarray:
    """A picture of slopes and waves, without any random number."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = 0.06 * np.sin(50 * x + 31 * y * y) * np.cos(43 * x * y)
    return waves[..., None] + np.stack([0.3 + 0.4 * x, 0.5 + 0.2 * np.sin(3 * y), 0.6 - 0.3 * x * y], axis=2)


@pytest.mark.parametrize(
    ("height", "width", "score", "total"),
    [
        (64, 64, 43.3445, 1731043),
        (40, 90, 36.5046, 1540960),
        (128, 192, 48.7179, 10601020),
        (256, 256, 105.8483, 27705088),
        (300, 280, 104.4380, 35362096),
    ],
)
def test_marked_pictures_are_those_of_earlier_releases(height: int, width: int, score: float, total: int) -> None:
    marked = watermark.embed(slope(height, width))
    assert watermark.score(marked) == pytest.approx(score, abs=1e-3)
    assert int((marked * 255).round().sum()) == total
    clean = (slope(height, width) * 255).round() / 255
    assert abs(watermark.score(clean)) < 4


@pytest.mark.parametrize("size", [64, 256])
def test_the_change_is_grey_and_about_42_db(size: int) -> None:
    clean = slope(size, size)
    change = watermark.embed(clean) - clean
    assert -42.1 < 10 * np.log10(np.square(change).mean()) < -41.5
    rounding = 1 / 255
    assert np.abs(change - change.mean(axis=2, keepdims=True)).max() <= rounding  # all three colours alike
    assert abs(change.mean()) < 1e-3  # the lowest frequencies, brightness too, stay


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 90), (128, 192), (256, 256), (300, 280)])
def test_the_weakest_push_is_found_within_three_tries(monkeypatch, height: int, width: int) -> None:
    """Each try rounds the whole picture; halving the range of pushes would take twelve."""
    tries, rounded = [], np.round
    monkeypatch.setattr(np, "round", lambda *given, **options: tries.append(1) or rounded(*given, **options))
    watermark.embed(slope(height, width))
    assert 1 <= len(tries) <= 3


def test_the_score_does_not_depend_on_brightness_and_contrast() -> None:
    marked = watermark.embed(slope(64, 64))
    assert watermark.score(0.5 * marked + 0.2) == pytest.approx(watermark.score(marked), abs=1e-3)
    assert watermark.score(1 - marked) == pytest.approx(watermark.score(marked) * -1, abs=1e-3)


def test_the_threshold_decides() -> None:
    marked = watermark.embed(slope(64, 64))
    score = watermark.score(marked)
    assert watermark.detect(marked, threshold=score - 0.01) and not watermark.detect(marked, threshold=score)
    assert watermark.detect(marked) and not watermark.detect(1 - marked)


def test_a_black_picture_has_no_score() -> None:
    assert watermark.score(np.zeros((64, 64, 3))) == 0.0
