"""Which queries are asked, and which answers are right: pure functions of the labels.

The gallery is every test portrait. A portrait answers a description when it shows every attribute value that
the description names, whichever portrait the words were written for (what cannot be seen, such as the hair color of a
bald head, is no answer); two portraits of one person that a short
description does not tell apart are equally right. Of photos no attributes are known: there a portrait answers the words
that were written for it, and no others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from eval.metrics import TIE_TOLERANCE
from faceclip.errors import DataError, EmptyDatasetError

QueryKind = Literal["face", "face_frontal", "text", "face+text", "image"]
QUERY_KINDS: tuple[QueryKind, ...] = get_args(QueryKind)

DESCRIPTIONS: dict[QueryKind, str] = {
    "face": "a face → every other portrait of the person; the query's own portrait leaves the gallery",
    "face_frontal": "a face → the person's frontal portrait, in a gallery of one frontal portrait per person",
    "text": "a description → every portrait that has all attributes it names (a photo: that has the same words)",
    "face+text": (
        "the face in portrait A and the description of portrait B of the same person → B, and whatever other "
        "portraits of the person the description fits as well; A leaves the gallery"
    ),
    "image": "a whole portrait → every other portrait of the person; the query's own leaves the gallery",
}


@dataclass(frozen=True, kw_only=True)
class Description:
    """A caption and the attribute values it names, such as {"hair_color": "red"}; nobody knows what one of kind "free"
    names."""

    text: str
    kind: str
    names: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of N test portraits. `index` counts within the person; 0 is the frontal portrait."""

    identity: NDArray[np.int64]
    index: NDArray[np.int64]
    attributes: Mapping[str, NDArray[np.str_]]
    descriptions: Sequence[Sequence[Description]]

    def __post_init__(self) -> None:
        count = len(self.identity)
        if count == 0:
            raise EmptyDatasetError("the test split has no portraits: generate data with a test share above 0")
        for name, values in {"index": self.index, **self.attributes}.items():
            if len(values) != count:
                raise DataError(f"column {name} has {len(values)} rows, identity has {count}")
        if len(self.descriptions) != count:
            raise DataError(f"{len(self.descriptions)} rows of captions for {count} portraits")

    def __len__(self) -> int:
        return len(self.identity)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Q queries against a gallery of G portraits.

    `face` (Q,): row of the portrait that gives the face or image, −1 for none; `text`: Q descriptions, "" for
    none; `relevant` and `excluded` (Q, G); `identity` (Q,): the person by whom the bootstrap groups the query.
    """

    kind: QueryKind
    face: NDArray[np.int64]
    text: Sequence[str]
    relevant: NDArray[np.bool_]
    excluded: NDArray[np.bool_]
    identity: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.face)


def matches(labels: Labels, names: Mapping[str, str]) -> NDArray[np.bool_]:
    """Portraits (N,) that have every attribute value a description names."""
    fits = np.ones(len(labels), dtype=bool)
    for name, value in names.items():
        if name not in labels.attributes:
            raise DataError(f"a caption names the attribute {name!r}, the data has {sorted(labels.attributes)}")
        fits &= labels.attributes[name] == value
    return fits


def fitting(labels: Labels, description: Description) -> NDArray[np.bool_]:
    """Portraits (N,) that a description fits: they have what it names or, if that is unknown, are described by the same
    words."""
    if description.kind == "free":
        return np.array([any(item.text == description.text for item in row) for row in labels.descriptions])
    return matches(labels, description.names)


def build_queries(labels: Labels, kind: QueryKind, *, seed: int = 0, limit: int | None = None) -> Queries:
    """The queries of one kind, a function of labels and seed alone. `limit` keeps that many, evenly spread.

    Raises `EmptyDatasetError` when the labels allow no query of this kind.
    """
    if kind not in QUERY_KINDS:
        raise ValueError(f"unknown query kind {kind!r}: choose from {', '.join(QUERY_KINDS)}")
    generator = np.random.default_rng([seed, QUERY_KINDS.index(kind)])
    face, text, relevant, excluded, people = [], [], [], [], []
    own = np.eye(len(labels), dtype=bool)
    frontal = labels.index == 0
    for row in range(len(labels)):
        same = labels.identity == labels.identity[row]
        source, words, out = row, "", own[row]
        if kind in ("face", "image"):
            right = same & ~own[row]
        elif kind == "face_frontal":
            if frontal[row]:
                continue
            right, out = same & frontal, ~frontal
        else:
            described = _pick_description(labels.descriptions[row], generator)
            others = np.flatnonzero(same & ~own[row])
            if described is None or (kind == "face+text" and not len(others)):
                continue
            words, right = described.text, fitting(labels, described)
            if kind == "text":
                source, out = -1, np.zeros(len(labels), dtype=bool)
            else:
                source = int(generator.choice(others))
                right, out = right & same & ~own[source], own[source]
        if not right.any():
            continue
        face.append(source)
        text.append(words)
        relevant.append(right)
        excluded.append(out)
        people.append(labels.identity[row])
    if not face:
        raise EmptyDatasetError(f"the labels allow no {kind} query: the split needs several portraits per person")
    kept = np.arange(len(face))
    if limit is not None and len(face) > limit:
        kept = np.unique(np.linspace(0, len(face) - 1, limit).round().astype(int))
    return Queries(
        kind=kind,
        face=np.array(face)[kept],
        text=[text[i] for i in kept],
        relevant=np.stack(relevant)[kept],
        excluded=np.stack(excluded)[kept],
        identity=np.array(people)[kept],
    )


def _pick_description(descriptions: Sequence[Description], generator: np.random.Generator) -> Description | None:
    """One description that names changeable attributes, or a free one; captions of the emotion alone leave too much
    open."""
    usable = [item for item in descriptions
              if item.kind == "free" or (item.kind in ("attributes", "both") and item.names)]  # fmt: skip
    return usable[int(generator.integers(len(usable)))] if usable else None


def explain_top(
    scores: NDArray[np.floating], queries: Queries, labels: Labels, described: NDArray[np.bool_]
) -> dict[str, float]:
    """What stands first for composed queries, as shares of all queries; of equal scores a wrong answer is first, as in
    the ranks. A query without a face to ask with has no finite score and no answer.

    `described` (Q, G): portraits that fit each query's description, whoever they show.
    """
    scores = np.where(queries.excluded, -np.inf, scores)
    best = scores.max(axis=1, keepdims=True)
    answered = np.isfinite(best[:, 0])
    equal = scores >= best - TIE_TOLERANCE
    wrong = equal & ~queries.relevant
    order = np.where(wrong.any(axis=1), wrong.argmax(axis=1), equal.argmax(axis=1))
    person = (labels.identity[order] == queries.identity) & answered
    other = ~person & answered
    fits = described[np.arange(len(queries)), order]
    right = queries.relevant[np.arange(len(queries)), order] & answered
    return {
        "right": float(right.mean()),
        "this person, other description": float((person & ~right).mean()),
        "another person, this description": float((other & fits).mean()),
        "neither": float((other & ~fits).mean()),
        "no face found": float((~answered).mean()),
    }
