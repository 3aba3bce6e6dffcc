"""Pose, light, landmarks and expression of a picture against the wanted ones.

A named estimator that did not condition the generator measures them; the functions take its results.
"""

import numpy as np
from numpy.typing import NDArray

from eval.metrics.distances import angle_difference

AXES = ("yaw", "pitch", "roll")


def pose_errors(found: NDArray[np.floating], wanted: NDArray[np.floating]) -> NDArray[np.float64]:
    """Absolute error in degrees per picture and axis (N, 3) of yaw, pitch and roll, across the wrap at 180°.

    Pose-RMSE is `root_mean_square` of a column.
    """
    return angle_difference(found, wanted)


def root_mean_square(errors: NDArray[np.floating]) -> float:
    """√ of the mean square of the errors that are known; NaN where none is."""
    known = np.asarray(errors, np.float64)[~np.isnan(errors)]
    return float(np.sqrt(np.square(known).mean())) if len(known) else float("nan")


def light_errors(
    found: NDArray[np.floating], wanted: NDArray[np.floating], *, gain_free: bool = False
) -> NDArray[np.float64]:
    """Root mean square difference (N,) of spherical-harmonic lights (N, 9, 3) or (N, 27) over their 27 coefficients.

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


def landmark_difference(
    found: NDArray[np.floating], wanted: NDArray[np.floating], boxes: NDArray[np.floating] | None = None
) -> NDArray[np.float64]:
    """Mean distance (N,) of landmarks (N, K, 2) after both were centered and divided by the diagonal of their box.

    boxes: diagonals in px (N, 2) of found and wanted faces; None: those of the landmarks' own bounding boxes. Neither
    scale nor place counts; pose does.
    """
    sides = [np.asarray(points, np.float64) for points in (found, wanted)]
    moved = []
    for number, points in enumerate(sides):
        centered = points - points.mean(axis=1, keepdims=True)
        diagonal = np.linalg.norm(np.ptp(points, axis=1), axis=1) if boxes is None else np.asarray(boxes)[:, number]
        moved.append(centered / np.maximum(diagonal, 1e-9)[:, None, None])
    return np.linalg.norm(moved[0] - moved[1], axis=-1).mean(axis=1)


def expression_changed(found: list[str], wanted: list[str]) -> NDArray[np.float64]:
    """1 per picture (N,) whose expression has another name than the wanted one, else 0 (IBench's ExprDiv)."""
    return np.array([float(one != other) for one, other in zip(found, wanted, strict=True)])
