"""The columns of a record of a portrait data set, which is a Hugging Face `datasets` directory.

Layout: ``DIR/data/{train,validation,test}-*.parquet``, ``DIR/README.md`` (data card), ``DIR/dataset.json``
(seed, version, counts and the hash of every shard; it is written last, so its presence means complete data).
"""

from dataclasses import asdict, dataclass, field
from typing import Literal

import datasets
from datasets import Features, List, Value

from faceclip.data.placement import PLACEMENT

SPLITS = ("train", "validation", "test")

REGIONS = (
    "background",
    "skin",
    "hair",
    "brows",
    "eyes",
    "glasses",
    "nose",
    "lips",
    "beard",
    "hat",
    "ears",
    "neck",
    "clothes",
)
"""Names of the labels 0, 1, … of the region map."""

_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black", "gray")

VOCABULARIES: dict[str, tuple[str, ...]] = {
    "hair_color": ("black", "brown", "blond", "red", "gray"),
    "hair_length": ("bald", "short", "medium", "long"),
    "hair_texture": ("straight", "wavy", "curly"),
    "beard": ("none", "stubble", "mustache", "full"),
    "glasses": ("none", "round", "square", "sunglasses"),
    "hat": ("none", "cap", "beanie", "brimmed"),
    "hat_color": _COLORS,
    "makeup": ("none", "lipstick", "full"),
    "clothes": ("tshirt", "shirt", "sweater", "hoodie"),
    "clothes_color": _COLORS,
    "expression": ("neutral", "smile", "laugh", "surprise", "sad", "angry"),
    "background_color": ("white", "gray", "blue", "green", "beige", "pink", "dark"),
}
"""Changeable attributes and their values; a value's position is its class in `FaceArrays.attributes`."""

_PHOTO_COLORS = (*_COLORS, "pink", "brown", "beige")
PHOTO_VOCABULARIES: dict[str, tuple[str, ...]] = VOCABULARIES | {
    "clothes_color": _PHOTO_COLORS,
    "background_color": (*VOCABULARIES["background_color"], "red", "orange", "yellow", "purple", "brown"),
    "mouth": ("closed", "open"),
    "eyes": ("open", "closed"),
    "brows": ("resting", "raised"),
    "gaze": ("camera", "left", "right", "up", "down"),
    "head": ("frontal", "left", "right"),
    "nod": ("level", "up", "down"),
    "tilt": ("upright", "left", "right"),
    "lip_color": ("natural", "red"),
    "light": ("even", "left", "right", "above", "below"),
    "face_size": ("close", "medium", "far"),
    "age": ("child", "young", "middle", "old"),
    "sex": ("female", "male"),
}
"""The same of photographs, where a value may be unknown (""); left and right are those of the picture."""

CaptionKind = Literal["attributes", "emotion", "both", "free"]


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A span of a caption that describes one region: `caption.text[start:end] == text`.

    attributes: names (keys of `VOCABULARIES`) of the attributes whose values these words state.
    """

    text: str
    start: int
    end: int
    region: str
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A description of one portrait with its phrases in order of appearance. A "free" caption has no phrases, because
    it is not known what its words describe."""

    text: str
    kind: CaptionKind
    phrases: tuple[Phrase, ...] = field(default=())

    @property
    def named(self) -> tuple[str, ...]:
        """The names of all attributes that the caption states."""
        return tuple(name for phrase in self.phrases for name in phrase.attributes)


def caption_to_dict(caption: Caption) -> dict:
    """Returns the nested dict that the column `captions` stores."""
    return asdict(caption)


def caption_from_dict(stored: dict) -> Caption:
    """Returns the caption that `caption_to_dict` converted. Raises KeyError for a missing field."""
    phrases = [
        Phrase(attributes=tuple(phrase["attributes"]), **{n: phrase[n] for n in ("text", "start", "end", "region")})
        for phrase in stored["phrases"]
    ]
    return Caption(text=stored["text"], kind=stored["kind"], phrases=tuple(phrases))


LABELS = ("attributes", "regions")
"""Columns that a data set of photos lacks, unless its captions were made."""
READ = ("confidence", "landmarks_478")
"""Columns that only photos whose captions were made have."""


def features(*, labelled: bool = True, read: bool = False, masked: bool = False, replied: bool = False) -> Features:
    """Returns the columns of a record. Landmarks are pixels (x, y) with pixel centers at integers; angles are degrees.

    labelled: false for photos (`faceclip.data.photos`), which have no `LABELS` but the person, the row of the source,
    and the place of the portrait in its picture (`faceclip.data.placement`). read: photos whose captions were made
    have, for every attribute, a value of `PHOTO_VOCABULARIES` or "", and the confidence of the reading. masked: the
    picture `masks` has the rows' masks of words as bits (`faceclip.data.masks`). replied: the column `reply` has the
    unchanged reply of a vision-language model.
    """
    numbers = List(Value("float32"))
    points = List(List(Value("float32")))
    phrase = {
        "text": Value("string"),
        "start": Value("int32"),
        "end": Value("int32"),
        "region": Value("string"),
        "attributes": List(Value("string")),
    }
    columns = Features(
        {
            "image": datasets.Image(),
            "identity": Value("int32"),
            "index": Value("int32"),
            "attributes": {name: Value("string") for name in VOCABULARIES},
            "expression": numbers,
            "shape": numbers,
            "pose": {"yaw": Value("float32"), "pitch": Value("float32"), "roll": Value("float32")},
            "camera": numbers,
            "light": numbers,
            "landmarks_5": points,
            "landmarks_68": points,
            "regions": datasets.Image(),
            "shading": datasets.Image(),
            "captions": List({"text": Value("string"), "kind": Value("string"), "phrases": List(phrase)}),
        }
    )
    if labelled:
        return columns
    kept = {name: kind for name, kind in columns.items() if read or name not in LABELS}
    if read:
        kept["attributes"] = {name: Value("string") for name in PHOTO_VOCABULARIES}
        kept |= {"confidence": {name: Value("float32") for name in PHOTO_VOCABULARIES}, "landmarks_478": points}
    if masked:
        kept["masks"] = datasets.Image()
    if replied:
        kept["reply"] = Value("string")
    return Features(kept | {"person": Value("string"), "key": Value("string"), PLACEMENT: List(Value("int32"))})
