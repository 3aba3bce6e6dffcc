"""Validates stage 1 by composed queries and by faces alone in a gallery of all portraits, ranked as in the evaluation
(`faceclip.retrieval`)."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from faceclip.data.portraits import People
from faceclip.encoder import FaceCLIP
from faceclip.retrieval.labels import Labels, portrait_labels
from faceclip.retrieval.queries import Queries, Query, queries_of, rank1
from faceclip.towers.face import FaceFeatures
from train_encoder.split_features import SplitFeatures

FIGURES = (
    "composed_joint",
    "composed_concatenation",
    "composed_face",
    "composed_text",
    "face_joint",
    "face_recognizer",
)
SINGLE_FIGURES = ("self_joint", "self_concatenation", "self_text")


def figure_names(features: SplitFeatures) -> tuple[str, ...]:
    """Returns the names of the figures of `rank1_figures`."""
    return SINGLE_FIGURES if features.single else FIGURES


def rank1_figures(model: FaceCLIP, features: SplitFeatures, limit: int, *, seed: int = 0) -> dict[str, float]:
    """Returns rank-1 of at most `limit` queries in a gallery of all portraits of a split; ties count against the query.

    A composed query has the face of another portrait of the person and a caption of the answer; every portrait of the
    person that the caption fits is right. For a face alone, every other portrait of the person is right. The reference
    is removed from the gallery. Persons with one portrait are in the gallery but ask no queries. In data without
    identities (`features.single`) the reference is the answer itself and stays; these figures are named self_* instead
    of composed_*.
    """
    labels = portrait_labels(features.portraits)
    asked = draw_queries(features, labels, limit, seed=seed)
    composed = queries_of(labels, "face+text", asked)
    start = features.portraits.caption_start
    scores = scores_of(model, features, composed, np.array([start[q.row] + q.number for q in asked]))
    if features.single:
        return {name: _share(scores[name.replace("self", "composed")], composed) for name in SINGLE_FIGURES}
    faces = queries_of(labels, "face", [Query(row=query.face, face=query.face) for query in asked])
    return {name: _share(scores[name], faces if name.startswith("face") else composed) for name in FIGURES}


def draw_queries(features: SplitFeatures, labels: Labels, limit: int, *, seed: int) -> list[Query]:
    """Draws at most `limit` composed queries about portraits whose person has another one, by labels and seed alone."""
    rng = np.random.default_rng([seed, 11])
    people = People(labels.identity)
    rows = rng.permutation(len(labels))
    queries = []
    for row in rows[(people.counts[people.person[rows]] > 1) | features.single][:limit]:
        face = row if features.single else rng.choice(people.others(row))
        kinds = [caption.kind for caption in features.portraits.captions[row]]
        usable = [number for number, kind in enumerate(kinds) if kind != "emotion"] or [0]
        queries.append(Query(row=int(row), face=int(face), number=int(rng.choice(usable)), stays=features.single))
    return queries


def scores_of(
    model: FaceCLIP, features: SplitFeatures, queries: Queries, captions: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """Returns scores (Q, G) of composed queries, and of their faces alone, in the joint space and in the frozen spaces.

    captions (Q,): the rows of the queries' captions among the features.
    """
    device = model.face_encoder.pos_embed.device
    everyone = (torch.tensor(np.asarray(x), device=device) for x in (features.identity, features.image))
    gallery = model.joint_heads().gallery(*everyone)
    joint, face = [], []
    for start in range(0, len(queries), 128):
        at = slice(start, start + 128)
        faces = FaceFeatures(
            tokens=torch.tensor(features.tokens[queries.face[at]], device=device).float(),
            identity=torch.tensor(features.identity[queries.face[at]], device=device),
        )
        texts = list(queries.text[at])
        joint.append(model.embed(texts, face_features=faces).joint)
        face.append(model.embed([""] * len(texts), face_features=faces).joint)
    who, image, text = (
        F.normalize(torch.tensor(np.asarray(x), device=device), dim=-1)
        for x in (features.identity, features.image, features.caption)
    )
    r, c = torch.tensor(queries.face), torch.tensor(captions)
    scores = {
        "composed_joint": torch.cat(joint) @ gallery.T,
        "composed_concatenation": who[r] @ who.T + text[c] @ image.T,
        "composed_face": who[r] @ who.T,
        "composed_text": text[c] @ image.T,
        "face_joint": torch.cat(face) @ gallery.T,
        "face_recognizer": who[r] @ who.T,
    }
    return {name: score.cpu().numpy() for name, score in scores.items()}


def _share(scores: NDArray[np.float32], queries: Queries) -> float:
    """Returns the share of correctly answered queries. Queries with NaN scores, from a diverged model, count as
    wrong."""
    lost = np.isnan(scores).any(axis=1, keepdims=True)
    return float(rank1(np.where(lost, -np.inf, scores), queries).mean())
