"""Faces in pictures that lie on their side or upside down without an EXIF orientation.

A detector that was trained on upright faces finds some of these faces, too, with a high score and five points that
would belong to an upright one. Each face with less than the highest scores is therefore looked at again in its aligned
crop: as it was found, and, unless the detector is sure of it, turned by one, two and three quarters. An upright face is
surer as it was found.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from faceclip.faces.align import align_face, tilt, turn_points
from faceclip.faces.looks import Attempt, Face, FaceDetector, attempts_for, detect_with_retries, overlap

# Measured with MTCNN on 50 upright photographs: the log odds of the detector in the aligned crop are 6.4 and more as
# found, and 5.8 at most in the other turns. Wrongly upright faces of turned photographs reach 6 and more now and then.
SURE = 12.0  # log odds above which a face counts as upright without a look at the other turns
# Of 234 wrongly upright faces of turned photographs (LFW, Unsplash) none has a score above .9976 in the picture, and of
# the faces of the same photographs upright 77 % have this score.
CLEAR = 0.9995  # score in the picture from which a face counts as upright without a second look
LIKELY = 6.0  # log odds that a face needs where the picture as it lies shows none
BETTER = 1.0  # log odds by which another turn must be surer
_SIDE, _VIEW = 96, 2.0  # px of the second look, and what it shows in sides of the aligned crop
_OVERLAP = 0.3  # intersection over union at which two faces are one


def detect_upright(
    image: NDArray[np.uint8],
    detector: FaceDetector,
    attempts: Sequence[Attempt] | None = None,
    close: FaceDetector | None = None,
) -> list[Face]:
    """Like `detect_with_retries`, with the turned faces of a picture that lies on its side or upside down.

    Boxes and landmarks are pixels of the given picture, `Face.turn` says how the face lies. Faces that another turn
    explains better are left out unless they are found there, and so are, in such a picture, faces that no look
    confirms. Where given `attempts` find nothing, other turns are not looked at: who gives them, as for a reduced
    picture, goes on with all attempts, and a face that these find as the picture lies comes before one of another turn.
    `close` looks at aligned crops, `detector` if it is None: its scores are what the thresholds were measured on.
    """
    close = close or detector
    found = detect_with_retries(image, detector, attempts)
    if not found and attempts is not None:
        return []
    turns = [0 if face.score >= CLEAR else best_turn(image, face, close) for face in found]
    if found and not any(turns):
        return found
    faces = [
        face
        for face, turn in zip(found, turns, strict=True)
        if not turn and _confidence(image, face, close, 0) >= BETTER
    ]
    for turn in sorted(set(turns) - {0}) if found else (1, 2, 3):
        for face in _in_turned(image, detector, close, turn, thorough=bool(found)):
            if all(overlap(face.box, other.box) < _OVERLAP for other in faces):
                faces.append(face)
    return sorted(faces, key=lambda face: -face.score)


def best_turn(image: NDArray[np.uint8], face: Face, detector: FaceDetector) -> int:
    """Quarters by which the picture must be turned further for this face to be one that stands upright: 0 to 3.

    0 also where no turn shows a face that the detector is sure of.
    """
    as_found = _confidence(image, face, detector, 0)
    if as_found >= SURE:
        return 0
    others = {turn: _confidence(image, face, detector, turn) for turn in (1, 2, 3)}
    best = max(others, key=lambda turn: others[turn])
    return best if others[best] > as_found + BETTER else 0


def _in_turned(
    image: NDArray[np.uint8], detector: FaceDetector, close: FaceDetector, turn: int, *, thorough: bool
) -> list[Face]:
    """The upright faces of the turned picture, in pixels of the given one. Not thorough: the first attempt alone, and
    only likely faces."""
    turned = np.ascontiguousarray(np.rot90(image, turn))
    height, width = turned.shape[:2]
    attempts = None if thorough else attempts_for(height, width)[:1]
    faces = []
    for face in detect_with_retries(turned, detector, attempts):
        upright = _confidence(turned, face, close, 0)
        if upright < (BETTER if thorough else LIKELY) or best_turn(turned, face, close):
            continue
        corners = turn_points(face.box.reshape(2, 2), -turn, height, width)
        box = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
        landmarks = turn_points(face.landmarks, -turn, height, width)
        faces.append(Face(box=box.astype(np.float32), landmarks=landmarks.astype(np.float32), score=face.score))
    return faces


def _confidence(image: NDArray[np.uint8], face: Face, detector: FaceDetector, turn: int) -> float:
    """Log odds of an upright face in the middle of the aligned crop, turned by some quarters; -inf for none."""
    crop = align_face(image, face.landmarks, _SIDE, view=_VIEW)
    odds = [
        math.log(max(seen.score, 1e-9) / max(1 - seen.score, 1e-9))
        for seen in detector.detect(np.ascontiguousarray(np.rot90(crop, turn)))
        if _fills_middle(seen) and abs(tilt(seen.landmarks)) <= 45
    ]
    return max(odds, default=-math.inf)


def _fills_middle(face: Face) -> bool:
    corners = face.box.reshape(2, 2)
    off = np.abs(corners.mean(axis=0) - _SIDE / 2).max()
    return bool(off < 0.2 * _SIDE and corners[1, 0] - corners[0, 0] > 0.2 * _SIDE)
