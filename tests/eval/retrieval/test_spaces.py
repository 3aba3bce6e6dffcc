"""Every space in which portraits are searched: who is in its gallery, and how its two sides are weighed."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.retrieval.search import search
from eval.retrieval.spaces import (
    Portraits,
    RetrievalModel,
    baseline_spaces,
    encode_portraits,
    encode_text,
    joint_gallery,
    joint_queries,
)
from faceclip.data.arrays import load_arrays
from faceclip.faces.batches import FacePoints, crop_batches, labelled_faces, to_unit
from faceclip.retrieval.labels import labels_of
from faceclip.retrieval.queries import Queries, build_queries
from faceclip.towers.text import tokenize


@pytest.fixture(scope="module")
def model(joint_export: Path) -> RetrievalModel:
    return RetrievalModel.from_pretrained(joint_export)


@pytest.fixture(scope="module")
def arrays(tiny_dataset: Path):
    return load_arrays(tiny_dataset, "train")


@pytest.fixture(scope="module")
def portraits(model, arrays) -> Portraits:
    """Of the first nine portraits two have no detected face."""
    found = np.array([True, True, False, True, True, False, True, True, True])
    points = FacePoints(landmarks=np.asarray(arrays.landmarks_5)[:9], found=found)
    return encode_portraits(model, np.asarray(arrays.images)[:9], points, batch=4)


def asked(kind: str, face: list[int], text: list[str]) -> Queries:
    mask = np.zeros((len(face), 9), dtype=bool)
    return Queries(
        kind=kind, face=np.array(face), text=text, relevant=mask, excluded=mask, identity=np.zeros(len(face), int)
    )


def unit(values) -> np.ndarray:
    return F.normalize(torch.as_tensor(values).float(), dim=1).numpy()


@torch.no_grad()
def test_portraits_have_their_own_rows(model, arrays, portraits) -> None:
    assert not portraits.identity[[2, 5]].any() and not portraits.tokens[[2, 5]].any()
    for row in (0, 4, 8):
        points = labelled_faces(np.asarray(arrays.landmarks_5)[row : row + 1])
        pictures = np.asarray(arrays.images)[row : row + 1]
        ((_, crop),) = crop_batches(pictures, points, model.encoder.face_encoder.config.image_size)
        features = model.encoder.face_features(crop)
        torch.testing.assert_close(portraits.identity[row], features.identity[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(portraits.tokens[row].float(), features.tokens[0], atol=1e-2, rtol=1e-2)
        image = model.image_tower(to_unit(pictures)).embedding[0]
        torch.testing.assert_close(portraits.image[row], image, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_texts_keep_their_order_and_the_empty_one_is_absent(model) -> None:
    texts = ["a red hat", "", "a man", "a red hat", "  "]
    found = encode_text(model, texts, batch=2)
    assert found.present.tolist() == [True, False, True, True, False]
    for row in (0, 2, 3):
        alone = model.encoder.g.text(tokenize([texts[row]])).embedding[0].numpy()
        np.testing.assert_allclose(found.vectors[row], alone, atol=1e-4)


def test_undetected_portraits_are_in_no_gallery_of_faces(model, portraits) -> None:
    queries = asked("face+text", [0, 2], ["a man", "a man"])
    spaces = baseline_spaces(model, portraits, queries, weight=0.8)
    for name, (gallery, asking) in spaces.items():
        by_face = name.startswith(("face", "concatenation"))
        assert gallery.present.tolist() == (portraits.found.tolist() if by_face else [True] * 9), name
        assert asking.present.tolist() == ([True, False] if by_face else [True, True]), name
        scores = search(gallery, asking)
        assert np.isneginf(scores[0]).tolist() == ((~portraits.found).tolist() if by_face else [False] * 9), name
    assert joint_gallery(model, portraits).present.tolist() == portraits.found.tolist()
    assert joint_queries(model, portraits, queries).present.tolist() == [True, False]
    assert joint_queries(model, portraits, asked("image", [5, 6], ["", ""])).present.tolist() == [False, True]
    assert joint_queries(model, portraits, asked("text", [-1], ["a man"])).present.tolist() == [True]


def test_a_tuned_weight_acts_on_both_sides(model, portraits) -> None:
    queries = asked("face+text", [0, 3, 7], ["a man", "a red hat", "a woman"])
    gallery, asking = baseline_spaces(model, portraits, queries, weight=0.8)["concatenation, face weighed 0.80"]
    faces, images = unit(portraits.identity), unit(portraits.image)
    words = unit(encode_text(model, queries.text).vectors)
    wanted = 0.8 * faces[queries.face] @ faces.T + 0.2 * words @ images.T
    np.testing.assert_allclose(asking.vectors @ gallery.vectors.T, wanted, atol=1e-5)
    width = faces.shape[1]
    for side in (gallery.vectors[[0, 1, 3]], asking.vectors):
        np.testing.assert_allclose(np.square(side[:, :width]).sum(axis=1), 0.8, atol=1e-5)
        np.testing.assert_allclose(np.square(side[:, width:]).sum(axis=1), 0.2, atol=1e-5)
    plain, ours = baseline_spaces(model, portraits, queries, weight=None)["concatenation [face ; text]"]
    wanted = 0.5 * faces[queries.face] @ faces.T + 0.5 * words @ images.T
    np.testing.assert_allclose(ours.vectors @ plain.vectors.T, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("face", ["face alone", "image alone", "random"]),
        ("face_frontal", ["face alone", "image alone", "random"]),
        ("image", ["face alone", "image alone", "concatenation [face ; image]", "random"]),
        ("text", ["text alone", "random"]),
        ("face+text", ["face alone", "text alone", "image alone", "concatenation [face ; text]", "random"]),
    ],
)
def test_spaces_of_each_kind(model, portraits, kind: str, names: list[str]) -> None:
    queries = asked(kind, [3, 7], ["a man", "a hat"])
    spaces = baseline_spaces(model, portraits, queries, weight=None)
    assert list(spaces) == names
    if "face alone" in spaces:
        np.testing.assert_array_equal(spaces["face alone"][1].vectors, portraits.identity.numpy()[[3, 7]])
        assert spaces["face alone"][0].vectors.shape == portraits.identity.shape
    if "image alone" in spaces:
        np.testing.assert_array_equal(spaces["image alone"][1].vectors, portraits.image.numpy()[[3, 7]])
    if "text alone" in spaces:
        np.testing.assert_array_equal(spaces["text alone"][0].vectors, portraits.image.numpy())


def test_chance_is_drawn_from_the_seed_for_every_item_anew(model, portraits) -> None:
    queries = asked("face", [3, 7], ["", ""])
    gallery, asking = baseline_spaces(model, portraits, queries, weight=None, seed=4)["random"]
    drawn = np.random.default_rng(4).standard_normal((11, 64)).astype(np.float32)
    np.testing.assert_array_equal(np.concatenate([gallery.vectors, asking.vectors]), drawn)


@torch.no_grad()
def test_queries_are_embedded_with_their_own_face_and_words(model, arrays, portraits) -> None:
    queries = asked("face+text", [3, 7, 0], ["a man", "a red hat", "a woman"])
    told = []
    found = joint_queries(model, portraits, queries, batch=2, progress=told.append)
    for row, (face, text) in enumerate(zip(queries.face, queries.text, strict=True)):
        features = portraits.features([int(face)])
        features = type(features)(tokens=features.tokens.float(), identity=features.identity)
        alone = model.encoder.embed([text], face_features=features).joint[0].numpy()
        np.testing.assert_allclose(found.vectors[row], alone, atol=1e-4)
    assert told == [2, 1]
    labels = labels_of(arrays)
    assert build_queries(labels, "face", limit=3).face.tolist() == [0, 16, 31]  # spread over the whole split
