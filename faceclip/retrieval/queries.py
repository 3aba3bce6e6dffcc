"""Builds queries and their right answers, as pure functions of the labels.

The gallery is every portrait of a split. A portrait answers a description if it shows every attribute value that the
description names, whichever portrait the words were written for. Invisible values, such as the hair color of a bald
head, are no answer. Two portraits of a person that a short description does not distinguish are equally right.
Attributes of photos are not known, so a photo answers only the words that were written for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from faceclip.errors import EmptyDatasetError
from faceclip.retrieval.labels import Description, Labels, fits_among, fitting
from faceclip.statistics import TIE_TOLERANCE, first_right_rank, recall_at

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
class Query:
    """A query by row numbers.

    row: the wanted portrait. face: the portrait whose face is used, −1 for none. number: of the description of `row`
    that is used, None for none. stays: whether `face` stays in the gallery.
    """

    row: int
    face: int
    number: int | None = None
    stays: bool = False


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Q queries against a gallery of G portraits.

    `face` (Q,): row of the portrait that gives the face or image, −1 for none; `text`: Q descriptions, "" for
    none; `relevant` and `excluded` (Q, G); `identity` (Q,): the person by whom the bootstrap groups the query;
    `described` (Q, G): portraits of any person that fit each query's description, of composed queries.
    """

    kind: QueryKind
    face: NDArray[np.int64]
    text: Sequence[str]
    relevant: NDArray[np.bool_]
    excluded: NDArray[np.bool_]
    identity: NDArray[np.int64]
    described: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.face)


def build_queries(labels: Labels, kind: QueryKind, *, seed: int = 0, limit: int | None = None) -> Queries:
    """Builds the queries of one kind from labels and seed alone. `limit` keeps this number of them, evenly spread.

    Raises EmptyDatasetError if the labels allow no query of this kind, or if there is nobody to confuse a person with.
    """
    if kind not in QUERY_KINDS:
        raise ValueError(f"unknown query kind {kind!r}: choose from {', '.join(QUERY_KINDS)}")
    if kind in ("face", "face_frontal", "image") and len(np.unique(labels.identity)) < 2:
        raise EmptyDatasetError("all portraits show one person, so that every answer is right: it needs two people")
    if kind == "face_frontal" and labels.index is None:
        raise EmptyDatasetError("no face_frontal query can be asked: nobody says which portrait of a person is frontal")
    generator = np.random.default_rng([seed, QUERY_KINDS.index(kind)])
    # All that can be asked, without their masks over the gallery, of which those of the kept ones are enough.
    asked = [query for row in range(len(labels)) if (query := _ask(labels, kind, row, generator)) is not None]
    if limit is not None and len(asked) > limit:
        asked = [asked[i] for i in np.unique(np.linspace(0, len(asked) - 1, limit).round().astype(int))]
    return queries_of(labels, kind, asked)


def queries_of(labels: Labels, kind: QueryKind, asked: Sequence[Query]) -> Queries:
    """Returns the queries with their right answers. Raises EmptyDatasetError if there are no queries."""
    if not asked:
        raise EmptyDatasetError(f"no {kind} query can be asked: {_NEEDS[kind]}")
    fits = [None if query.number is None else fitting(labels, query.row, query.number) for query in asked]
    masks = [_answers(labels, kind, query, fit) for query, fit in zip(asked, fits, strict=True)]
    return Queries(
        kind=kind,
        face=np.array([query.face for query in asked]),
        text=["" if query.number is None else labels.descriptions[query.row][query.number].text for query in asked],
        relevant=np.stack([right for right, _ in masks]),
        excluded=np.stack([out for _, out in masks]),
        identity=labels.identity[[query.row for query in asked]],
        described=np.stack([fit for fit in fits if fit is not None]) if kind == "face+text" else None,
    )


def rank1(scores: NDArray[np.floating], queries: Queries) -> NDArray[np.float64]:
    """Returns (Q,): 1 if a right answer has the best of the scores (Q, G) and no wrong one equals it, else 0."""
    return recall_at(first_right_rank(scores, queries.relevant, queries.excluded), 1)


_NEEDS: dict[QueryKind, str] = {
    "face": "it needs a person with two portraits",
    "face_frontal": "it needs a person with a frontal portrait (index 0) and another one",
    "text": "it needs captions that name attributes, or free ones",
    "face+text": "it needs a person with two portraits, and captions that name attributes, or free ones",
    "image": "it needs a person with two portraits",
}


def _ask(labels: Labels, kind: QueryKind, row: int, generator: np.random.Generator) -> Query | None:
    """Returns the query about a portrait, if there is one with an answer."""
    face, number = row, None
    if kind == "face_frontal" and labels.index is not None and labels.index[row] == 0:
        return None
    if kind in ("text", "face+text"):
        number = _pick_description(labels.descriptions[row], generator)
        others = labels.same_person(row)
        others = others[others != row]
        if number is None or (kind == "face+text" and not len(others)):
            return None
        face = -1 if kind == "text" else int(generator.choice(others))
    query = Query(row=row, face=face, number=number)
    return query if _is_answered(labels, kind, query) else None


def _is_answered(labels: Labels, kind: QueryKind, query: Query) -> bool:
    """Returns whether `_answers` has a right one. It inspects only the person's portraits where that suffices, so that
    finding all queries of a gallery has linear cost."""
    mine = labels.same_person(query.row)
    if kind == "face_frontal":
        return labels.index is not None and bool((labels.index[mine] == 0).any())
    if query.number is None:
        return bool((mine != query.face).any())
    if kind == "text":
        own = fits_among(labels, query.row, query.number, np.array([query.row]))
        return bool(own[0]) or bool(fitting(labels, query.row, query.number).any())
    return bool((fits_among(labels, query.row, query.number, mine) & (mine != query.face)).any())


def _answers(
    labels: Labels, kind: QueryKind, query: Query, fits: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns the right answers (N,), and the portraits (N,) that are removed from the gallery.

    fits (N,): portraits that the query's description fits; None if it has none.
    """
    same = labels.identity == labels.identity[query.row]
    if kind == "face_frontal":
        frontal = np.asarray(labels.index) == 0
        return same & frontal, ~frontal
    out = np.zeros(len(labels), dtype=bool)
    if query.face >= 0 and not query.stays:
        out[query.face] = True
    if fits is None:
        return same & ~out, out
    return (fits if kind == "text" else fits & same & ~out), out


def _pick_description(descriptions: Sequence[Description], generator: np.random.Generator) -> int | None:
    """Draws the number of a description that names changeable attributes, or of a free one. Captions of the emotion
    alone are left out, because they are too vague."""
    usable = [
        number
        for number, item in enumerate(descriptions)
        if item.kind == "free" or (item.kind in ("attributes", "both") and item.names)
    ]
    return usable[int(generator.integers(len(usable)))] if usable else None


def explain_top(scores: NDArray[np.floating], queries: Queries, labels: Labels) -> dict[str, float]:
    """What stands first for composed queries, as shares of all queries; of equal scores a wrong answer is first, as in
    the ranks. A query without a face to ask with has no finite score and no answer.
    """
    scores = np.where(queries.excluded, -np.inf, scores)
    best = scores.max(axis=1, keepdims=True)
    answered = np.isfinite(best[:, 0])
    equal = scores >= best - TIE_TOLERANCE
    wrong = equal & ~queries.relevant
    order = np.where(wrong.any(axis=1), wrong.argmax(axis=1), equal.argmax(axis=1))
    person = (labels.identity[order] == queries.identity) & answered
    other = ~person & answered
    assert queries.described is not None  # of composed queries
    fits = queries.described[np.arange(len(queries)), order]
    right = queries.relevant[np.arange(len(queries)), order] & answered
    return {
        "right": float(right.mean()),
        "this person, other description": float((person & ~right).mean()),
        "another person, this description": float((other & fits).mean()),
        "neither": float((other & ~fits).mean()),
        "no face found": float((~answered).mean()),
    }
