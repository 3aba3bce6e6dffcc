"""The whole evaluation on a small data set and an untrained encoder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eval.hashes import model_hash
from eval.retrieval.__main__ import evaluate, main
from eval.retrieval.run import evaluate_kind
from eval.retrieval.spaces import RetrievalModel, encode_portraits, joint_gallery, joint_queries
from faceclip.data.arrays import load_arrays
from faceclip.data.photos import main as import_photos
from faceclip.errors import CheckpointError, EmptyDatasetError
from faceclip.faces.batches import FacePoints, labelled_faces
from faceclip.retrieval.labels import labels_of
from faceclip.retrieval.queries import build_queries


@pytest.fixture(scope="module")
def model(joint_export: Path) -> RetrievalModel:
    return RetrievalModel.from_pretrained(joint_export)


@pytest.fixture(scope="module")
def arrays(tiny_dataset: Path):
    return load_arrays(tiny_dataset, "train")


@pytest.fixture(scope="module")
def portraits(model, arrays):
    return encode_portraits(model, arrays.images, labelled_faces(arrays.landmarks_5))


def test_spaces_at_the_start_are_the_plain_concatenation(model, portraits):
    # The heads start as corrections of zero, so that the gallery is [face ; image] and nothing else.
    gallery = joint_gallery(model, portraits).vectors
    plain = torch.cat([F.normalize(portraits.identity, dim=1), F.normalize(portraits.image, dim=1)], dim=1)
    np.testing.assert_allclose(gallery, plain * 0.5**0.5, atol=1e-6)


def test_text_queries_need_no_face_and_image_queries_are_gallery_items(model, arrays, portraits):
    labels = labels_of(arrays)
    text = joint_queries(model, portraits, build_queries(labels, "text"))
    assert text.present.all() and np.allclose(np.linalg.norm(text.vectors, axis=1), 1, atol=1e-5)
    queries = build_queries(labels, "image")
    image = joint_queries(model, portraits, queries)
    np.testing.assert_array_equal(image.vectors, joint_gallery(model, portraits).vectors[queries.face])


def test_batches_do_not_change_embeddings(model, arrays, portraits):
    queries = build_queries(labels_of(arrays), "face+text", limit=6)
    one, three = (joint_queries(model, portraits, queries, batch=size).vectors for size in (1, 3))
    np.testing.assert_allclose(one, three, atol=1e-5)


def test_undetected_portraits_are_misses_in_every_face_space(model, arrays):
    found = np.arange(len(arrays)) % 2 == 0
    points = FacePoints(landmarks=np.asarray(arrays.landmarks_5), found=found)
    seen = encode_portraits(model, arrays.images, points)
    result = evaluate_kind(model, seen, labels_of(arrays), "face")
    lost = ~found[result.queries.face]
    for name in ("joint", "face alone"):
        assert (result.outcomes[name].precision[lost] == 0).all()
        assert (result.outcomes[name].precision[~lost] > 0).any()
    assert (result.outcomes["image alone"].precision[lost] > 0).any()  # needs no face


def test_a_split_without_any_detected_face_is_all_misses(model, arrays):
    points = FacePoints(landmarks=np.asarray(arrays.landmarks_5), found=np.zeros(len(arrays), dtype=bool))
    result = evaluate_kind(model, encode_portraits(model, arrays.images, points), labels_of(arrays), "face")
    assert (result.outcomes["joint"].precision == 0).all()
    assert (result.outcomes["image alone"].precision > 0).any()


def test_command_writes_json_and_report(joint_export, tiny_dataset, tmp_path, capsys):
    arguments = ["--model", str(joint_export), "--data", str(tiny_dataset), "--out", str(tmp_path)]
    assert main([*arguments, "--queries", "8"]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    spaces = content["labelled faces"]["face+text"]["spaces"]
    assert {"joint", "face alone", "text alone", "concatenation [face ; text]", "random"} <= set(spaces)
    assert set(content["detected faces"]) == {"face_frontal", "face+text"}
    assert 0 <= spaces["joint"]["rank-1"]["low"] <= spaces["joint"]["rank-1"]["value"] <= 1
    assert sum(content["labelled faces"]["face+text"]["first answer"]["joint"].values()) == pytest.approx(1)
    assert "data:image/png" in (tmp_path / "report.html").read_text()
    assert "report:" in capsys.readouterr().out
    assert content["settings"]["model"] == model_hash(joint_export)
    assert content["settings"]["data"] != content["settings"]["validation data"]


def test_kinds_are_chosen_and_checked_before_anything_is_computed(joint_export, tiny_dataset, tmp_path, capsys):
    arguments = ["--model", str(joint_export), "--data", str(tiny_dataset), "--out", str(tmp_path)]
    assert main([*arguments, "--queries", "8", "--kinds", "text,image", "--no-detector"]) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert list(content["labelled faces"]) == ["text", "image"] and not content["detected faces"]
    assert "concatenation weight of the face" not in content["facts"]
    assert main([*arguments, "--kinds", "text,faces"]) == 2
    assert "--kinds: 'faces' is none of face, face_frontal" in capsys.readouterr().err


def test_impossible_queries_are_refused_before_encoding(model, arrays):
    alone = replace(arrays, identity=np.arange(len(arrays)))
    with pytest.raises(EmptyDatasetError, match=r"^validation split: .*\bface\+text query .*--kinds"):
        evaluate(None, arrays, alone)  # without a model: nothing was encoded
    with pytest.raises(EmptyDatasetError, match=r"^test split: .*face query .*--kinds"):
        evaluate(None, alone, arrays)


def test_missing_exports_are_named(tmp_path, tiny_dataset, capsys):
    with pytest.raises(CheckpointError, match=r"config\.json: .*train_encoder"):
        RetrievalModel.from_pretrained(tmp_path)
    assert main(["--model", str(tmp_path), "--data", str(tiny_dataset), "--out", str(tmp_path)]) == 2
    assert "error:" in capsys.readouterr().err


def test_photos_with_made_captions_need_terms(joint_export, captioned_photos, tmp_path, capsys):
    arguments = ["--model", str(joint_export), "--data", str(captioned_photos), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--no-detector"]) == 2
    assert "--licence" in capsys.readouterr().err


def test_photos_are_asked_for_by_their_own_words(joint_export, tiny_dataset, tmp_path, capsys):
    folder = tmp_path / "photos"
    for split in ("train", "validation", "test"):
        arrays, lines = load_arrays(tiny_dataset, split), []
        (folder / split).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(np.asarray(arrays.images[i])).save(folder / split / f"{i}.png")
            lines.append(
                {
                    "file_name": f"{i}.png",
                    "caption": arrays.captions[i][0].text,
                    "identity": int(arrays.identity[i]),
                    "points": np.asarray(arrays.landmarks_5[i]).tolist(),
                }
            )
        (folder / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status = import_photos(
        [
            f"data.path={folder}",
            f"out={tmp_path / 'set'}",
            "size=64",
            "min_side=32",
            "test=test",
            "data.columns.landmarks=points",
        ]
    )
    assert status == 0, capsys.readouterr()
    arguments = ["--model", str(joint_export), "--data", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--no-detector"]) == 2
    assert "--licence" in capsys.readouterr().err
    arguments += ["--licence", "CC0-1.0", "--origin", "rendered, as if photographed"]
    assert main([*arguments, "--no-detector"]) == 0, capsys.readouterr()
    figures = json.loads((tmp_path / "out" / "results.json").read_text())["labelled faces"]
    assert figures["face+text"]["queries"] == figures["face"]["queries"] == 8
    assert figures["face_frontal"]["queries"] == 6
    arrays = load_arrays(tmp_path / "set", "test", labelled=False)
    turn = np.abs(np.asarray(arrays.pose)[:, :2]).sum(axis=1).reshape(2, 4)
    assert labels_of(arrays).index.reshape(2, 4).argmin(axis=1).tolist() == turn.argmin(axis=1).tolist()
