"""Measures how well recognizers distinguish the people in photographs, and how many faces the detector finds.

    python -m eval.photos.recognition photos=FOLDER [recognizers='["tiny/recognizer","dlib"]'] [people=150] […]

FOLDER has one folder of photos per person. Only figures are written, nothing of the photos.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.photos.figures import accepted, area, by_people, one_shot, pairs
from eval.photos.people import Photo, choose_photos, read_photos
from eval.reports.report import write_json
from faceclip.errors import ConfigError, EmptyDatasetError
from faceclip.faces.align import crop_side, encoder_crop
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.towers.dlib import CHIP, DlibFaceEncoder, warp_to_chips
from faceclip.towers.pretrained import load_tower
from faceclip.towers.recognizers import FaceEncoder, recognizer_facts

FALSE_RATE = 1e-3
BATCH = 16
Crop = Callable[[NDArray[np.uint8], NDArray[np.floating]], Tensor]


@dataclass(kw_only=True)
class RecognitionConfig:
    """Settings of the command."""

    photos: Path = setting(help="folder with one folder of photos per person")
    recognizers: list[str] = setting(factory=lambda: ["tiny/recognizer", "dlib"], help="towers, by name or place")
    people: int = setting(150, "people drawn from it", least=2)
    per_person: int = setting(3, "largest number of photos per person", least=2)
    seed: int = setting(0, "seed of the draw of people")
    out: Path | None = setting(None, "file that gets the figures as JSON")

    def __post_init__(self) -> None:
        if not self.recognizers:
            raise ConfigError("recognizers: name at least one, as in recognizers='[\"dlib\"]'")


def chip_of(image: NDArray[np.uint8], landmarks: NDArray[np.floating]) -> Tensor:
    """Cuts dlib's chip (3, 150, 150) in [0, 1] of a face.

    image (H, W, 3), landmarks (5, 2) px. An image whose face is more than twice as large as the chip is reduced first.
    """
    times = max(int(crop_side(landmarks) / CHIP), 1)
    if times > 1:
        size = (max(image.shape[1] // times, 1), max(image.shape[0] // times, 1))
        landmarks = (landmarks + 0.5) * (np.array(size) / image.shape[1::-1]) - 0.5
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
    return warp_to_chips(pixels, torch.from_numpy(np.asarray(landmarks, np.float32))[None])[0]


def ways(name: str, encoder: FaceEncoder) -> dict[str, tuple[Crop, Callable[[Tensor], Tensor]]]:
    """Returns, by name, the ways to embed a face: a function that crops it and one that embeds a batch of crops.

    All recognizers take the aligned crop; dlib's also takes its own chip.
    """
    size = int(encoder.config.image_size)

    def crop(image: NDArray[np.uint8], landmarks: NDArray[np.floating]) -> Tensor:
        return torch.from_numpy(encoder_crop(image, landmarks, size)).permute(2, 0, 1).float() / 255

    found: dict[str, tuple[Crop, Callable[[Tensor], Tensor]]] = {name: (crop, lambda x: encoder(x).identity)}
    if isinstance(encoder, DlibFaceEncoder):
        found[f"{name}, its own chip"] = (chip_of, lambda x: encoder.encode_chips(x).identity)
    return found


@torch.no_grad()
def embed(photos: list[Photo], crop: Crop, network: Callable[[Tensor], Tensor]) -> tuple[NDArray[np.float32], float]:
    """Returns embeddings (N, E) of the photos' faces, and the processor seconds per face, including the crop."""
    start, parts = time.process_time(), []
    for first in range(0, len(photos), BATCH):
        batch = [crop(p.image, p.face.landmarks) for p in photos[first : first + BATCH] if p.face is not None]
        parts.append(network(torch.stack(batch)).float().numpy())
    return np.concatenate(parts), (time.process_time() - start) / len(photos)


def scores_of(vectors: NDArray[np.float32], *, euclidean: bool) -> NDArray[np.float64]:
    """Returns scores (N, N) of all pairs: cosines, or with `euclidean` negative distances, by which dlib was
    trained."""
    vectors = vectors.astype(np.float64)
    if euclidean:
        square = np.square(vectors).sum(axis=1)
        return -np.sqrt(np.maximum(square[:, None] + square[None] - 2 * vectors @ vectors.T, 0))
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors @ vectors.T


def recognition_figures(scores: NDArray[np.float64], people: NDArray[np.int64]) -> dict[str, Estimate]:
    """Measures verification over all pairs, and identification by the first photo of each person.

    scores (N, N), people (N,). Intervals are over people.
    """
    first = np.zeros(len(people), bool)
    first[np.unique(people, return_index=True)[1]] = True
    right, probes = one_shot(scores, people, first)
    return {
        "area under ROC, 1:1": by_people(lambda rows: area(*pairs(scores, people, rows)), people),
        f"true accepts at {FALSE_RATE:g} false": by_people(
            lambda rows: accepted(*pairs(scores, people, rows), FALSE_RATE), people
        ),
        "rank-1 by one photo": identity_bootstrap(right, probes),
    }


def measure(config: RecognitionConfig) -> None:
    """Measures with one thread, prints the figures, and writes the files that `config` names."""
    torch.set_num_threads(1)
    chosen = choose_photos(config.photos, config.people, config.per_person, config.seed)
    encoders = {name: load_tower(name, "face") for name in config.recognizers}
    photos = list(read_photos(chosen))
    seen = [photo for photo in photos if photo.face is not None]
    if len({photo.person for photo in seen}) < 2:
        raise EmptyDatasetError(f"photos={config.photos}: the detector finds faces of fewer than two people")
    found = np.array([photo.face is not None for photo in photos], np.float64)
    detected = identity_bootstrap(found, np.array([photo.person for photo in photos]))
    report: dict[str, dict] = {
        "detection": {"face found": detected},
        "missed, by cause": dict(Counter(photo.fault for photo in photos if photo.face is None)),
    }
    print(f"face found: {detected}")
    print(f"missed, by cause: {report['missed, by cause'] or 'none'}")
    people = np.array([photo.person for photo in seen])
    for name, encoder in encoders.items():
        facts = recognizer_facts(name, encoder)
        for way, (crop, network) in ways(name, encoder).items():
            vectors, seconds = embed(seen, crop, network)
            scores = scores_of(vectors, euclidean=isinstance(encoder, DlibFaceEncoder))
            figures = recognition_figures(scores, people)
            print(f"{way} ({facts.licence}): {1 / max(seconds, 1e-9):.0f} faces/s per core")
            for figure, value in figures.items():
                print(f"  {figure}: {value}")
            report[way] = {**figures, "faces_per_second": 1 / max(seconds, 1e-9), "licence": facts.licence}
    if config.out is not None:
        write_json(config.out, report)


main = partial(run, measure, RecognitionConfig)

if __name__ == "__main__":
    sys.exit(main())
