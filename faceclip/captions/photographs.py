"""Captions of photographs: what could be read, said by the grammar of renders with the spans and regions of phrases."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faceclip.captions.ages import AgeAndSex
from faceclip.captions.colors import Reading
from faceclip.captions.grammar import sentences
from faceclip.captions.reader import read_attributes, said
from faceclip.captions.region_map import add_worn, map_regions
from faceclip.captions.visibility import visible_regions
from faceclip.captions.wording import PHOTOGRAPHS
from faceclip.captions.zero_shot import ZeroShot
from faceclip.data.records import PHOTO_VOCABULARIES, Caption
from faceclip.face3d.frames import FaceFit
from faceclip.faces.dense import SHA256 as LANDMARKS
from faceclip.faces.dense import DenseFaces, DenseLandmarker
from faceclip.faces.person import SHA256 as SEGMENTER
from faceclip.faces.person import PersonSegmenter

VERSION = 1  # of borders and wording: other ones make other captions
LEAST = 0.7
WORN = ("glasses", "beard", "hat")


@dataclass(frozen=True, kw_only=True)
class Described:
    """regions: label map (S, S) of `records.REGIONS`; attributes: values of `PHOTO_VOCABULARIES` that are sure enough,
    "" for the others; confidence: of every reading, sure or not, 0 where nothing was read."""

    regions: NDArray[np.uint8]
    attributes: dict[str, str]
    confidence: dict[str, float]
    captions: list[Caption]


class PhotoDescriber:
    """Reads portraits and says what it is sure of.

    landmarker: of the dense points; None is MediaPipe's of the installed wheel. least: the confidence from which a
    value is said. zero_shot, ages: other models that read portraits.

    Raises MissingExtraError and CheckpointError as `DenseLandmarker` and `PersonSegmenter` do.
    """

    def __init__(
        self,
        landmarker: DenseLandmarker | None = None,
        *,
        least: float = LEAST,
        zero_shot: ZeroShot | None = None,
        ages: AgeAndSex | None = None,
    ) -> None:
        self.landmarker = landmarker or DenseLandmarker()
        self.segmenter = PersonSegmenter()
        self.least, self.zero_shot, self.ages = least, zero_shot, ages

    @property
    def facts(self) -> list[str]:
        """All that decides what it says."""
        others = [model.facts for model in (self.zero_shot, self.ages) if model is not None]
        return [f"captions {VERSION}, from {self.least}", LANDMARKS, SEGMENTER, *others]

    def describe(
        self,
        pictures: Sequence[NDArray[np.uint8]],
        landmarks: NDArray[np.floating],
        fit: FaceFit,
        seeds: Sequence[int],
        *,
        dense: DenseFaces | None = None,
    ) -> list[Described]:
        """Describes portraits (S, S, 3) with five points (B, 5, 2) px and a fit of B faces. seeds: of the wording of
        each; dense: the points, where they are known already."""
        dense = dense or self.landmarker(pictures, landmarks)
        others: list[dict[str, Reading]] = [{} for _ in pictures]
        if self.zero_shot is not None and len(pictures):
            others = [one | more for one, more in zip(others, self.zero_shot.read(pictures), strict=True)]
        if self.ages is not None and len(pictures):
            others = [one | more for one, more in zip(others, self.ages.read(pictures, landmarks), strict=True)]
        return [
            self._one(picture, dense.points[row], dense.blendshapes[row], fit.rows([row]), seeds[row], others[row])
            for row, picture in enumerate(pictures)
        ]

    def _one(
        self,
        picture: NDArray[np.uint8],
        points: NDArray[np.float32],
        blendshapes: NDArray[np.float32],
        fit: FaceFit,
        seed: int,
        others: dict[str, Reading],
    ) -> Described:
        labels = map_regions(picture, self.segmenter(picture), points)
        readings = read_attributes(
            picture,
            labels,
            points=points,
            blendshapes=blendshapes,
            pose=fit.pose[0].numpy(),
            light=fit.light[0].numpy(),
        )
        return conclude(labels, points, without_hair_under_hats(readings | others), seed, least=self.least)


def without_hair_under_hats(readings: Mapping[str, Reading]) -> dict[str, Reading]:
    """Returns the readings without the colour of hair where a hat or a bald head is the likeliest."""
    found = dict(readings)
    hat, length = found.get("hat"), found.get("hair_length")
    if (hat is not None and hat.value != "none") or (length is not None and length.value == "bald"):
        found.pop("hair_color", None)
    return found


def conclude(
    labels: NDArray[np.uint8],
    points: NDArray[np.floating],
    readings: Mapping[str, Reading],
    seed: int,
    *,
    least: float = LEAST,
) -> Described:
    """Concludes from a region map (S, S), dense points and all readings what is said: up to four captions, each of
    which describes something, or that there is a person."""
    values = said(readings, least)
    labels = add_worn(labels, points, frozenset(name for name in WORN if values.get(name, "none") != "none"))
    captions = sentences(values, visible_regions(labels), np.random.default_rng(seed), PHOTOGRAPHS)
    captions = [caption for caption in captions if caption.phrases] or captions[:1]
    return Described(
        regions=labels,
        attributes={name: values.get(name, "") for name in PHOTO_VOCABULARIES},
        confidence={name: readings[name].confidence if name in readings else 0.0 for name in PHOTO_VOCABULARIES},
        captions=captions,
    )
