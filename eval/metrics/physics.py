"""Light, landmarks and expression of a picture against the wanted ones.

A named estimator that did not condition the generator measures them; the functions take its results.
"""

import numpy as np
from numpy.typing import NDArray

AXES = ("yaw", "pitch", "roll")


def light_errors(
    found: NDArray[np.floating], wanted: NDArray[np.floating], *, gain_free: bool = False
) -> NDArray[np.float64]:
    """Returns the root mean square difference (N,) of spherical-harmonic lights (N, 9, 3) or (N, 27) over their 27
    coefficients.

    gain_free: each found light is first multiplied by the one factor that brings it nearest, so that a brighter skin
    or exposure is no error. A found light of zero stays zero.
    """
    one = np.asarray(found, np.float64).reshape(len(found), -1)
    other = np.asarray(wanted, np.float64).reshape(len(wanted), -1)
    if gain_free:
        power = np.square(one).sum(axis=1)
        gain = np.where(power > 0, (one * other).sum(axis=1) / np.where(power > 0, power, 1), 0)
        one = one * gain[:, None]
    return np.sqrt(np.square(one - other).mean(axis=1))


def landmark_difference(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the mean distance (N,) of landmarks (N, K, 2) px after both were centered and divided by the diagonal of
    their bounding box.

    Neither scale nor place counts; pose does.
    """
    moved = []
    for points in (np.asarray(found, np.float64), np.asarray(wanted, np.float64)):
        centered = points - points.mean(axis=1, keepdims=True)
        diagonal = np.linalg.norm(np.ptp(points, axis=1), axis=1)
        moved.append(centered / np.maximum(diagonal, 1e-9)[:, None, None])
    return np.linalg.norm(moved[0] - moved[1], axis=-1).mean(axis=1)


def expression_changed(found: list[str], wanted: list[str]) -> NDArray[np.float64]:
    """Returns 1 per picture (N,) whose expression has another name than the wanted one, else 0 (IBench's ExprDiv)."""
    return np.array([float(one != other) for one, other in zip(found, wanted, strict=True)])
