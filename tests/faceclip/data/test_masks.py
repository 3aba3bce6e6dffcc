"""Masks that FaceCaptionMask's rows give to words: read, cut as their portraits are, and kept as bits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from faceclip.data.arrays import load_arrays
from faceclip.data.cells import RejectedRecord
from faceclip.data.masks import MOST, mask_number, mask_of, pack_masks, words_at
from faceclip.data.photos import main
from makeup_plugin.phrases import phrase_token_mask
from tests.stages import run

ATTRIBUTE, EMOTION = "A person with short brown hair.", "A smiling person."


def test_masks_are_bits_and_may_overlap():
    masks = np.random.default_rng(0).random((MOST, 5, 5)) < 0.5
    planes = pack_masks(masks)
    assert planes.shape == (5, 5, 3) and planes.dtype == np.uint8
    for number, mask in enumerate(masks):
        np.testing.assert_array_equal(mask_of(planes, number), mask)
    assert (mask_number("mask 7"), mask_number(f"mask {MOST}"), mask_number("hair")) == (7, None, None)


def test_positions_of_tokens_are_words():
    text = "A woman with unbelievably curly hair, smiling."
    for phrase in ("unbelievably curly hair", "woman", "smiling"):
        start = text.index(phrase)
        positions = phrase_token_mask(text, start, start + len(phrase)).nonzero().flatten().tolist()
        assert words_at(text, positions, "row") == [(start, start + len(phrase))]
    apart = [1, *phrase_token_mask(text, 0, 7).nonzero().flatten().tolist()]
    assert words_at(text, apart, "row") == [(0, 7)]
    assert words_at(text, [2, 3, 9], "row")[0] == (2, 12)
    with pytest.raises(RejectedRecord, match=r"row.*\[0, 50\]"):
        words_at(text, [0, 2, 50], "row")


@pytest.fixture(scope="module")
def published(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Renders in FaceCaptionMask's layout. A picture's mask of hair is a rectangle at half the picture's size."""
    root = tmp_path_factory.mktemp("published")
    for split in ("train", "validation"):
        arrays, items = load_arrays(tiny_dataset, split), []
        for folder in ("images", "Emotion", "Attribute"):
            (root / folder).mkdir(exist_ok=True)
        for i in range(len(arrays)):
            name = f"{split}{i}.png"
            Image.fromarray(np.asarray(arrays.images[i])).resize((128, 128)).save(root / "images" / name)
            hair = np.zeros((64, 64), np.uint8)
            hair[:, :32] = 255
            Image.fromarray(hair).save(root / "Attribute" / f"hair_{name}")
            Image.fromarray(np.full((128, 128), 255, np.uint8)).save(root / "Emotion" / name)
            items.append(
                {
                    "image": f"images/{name}",
                    "face": [name],
                    "face_emotion_caption": EMOTION,
                    "emotion_parsing_masks": [{"mask": name, "token_indices": [2]}],
                    "face_attribute_caption": ATTRIBUTE,
                    "atrribute_parsing_masks": [{"mask": f"hair_{name}", "token_indices": [4, 5, 6]}],
                    "points": ((np.asarray(arrays.landmarks_5[i]) + 0.5) * 2 - 0.5).tolist(),
                }
            )
        (root / f"{split}.json").write_text(json.dumps(items))
    return root


def words(path: Path, out: Path, *more: str) -> list[str]:
    words = [f"data.path={path}", f"out={out}", "data.layout=facecaptionmask", "data.identity=none", "size=64"]
    return [*words, "min_side=32", "data.columns.landmarks=points", "data.validation_share=0.2", *more]


def test_published_rows_keep_their_masks(published, tmp_path):
    status, output = run(main, *words(published / "train.json", tmp_path / "set"))
    assert status == 0, output
    arrays = load_arrays(tmp_path / "set", "train", labelled=False)
    assert arrays.masks is not None and arrays.regions is None
    (shard,) = (tmp_path / "set" / "data").glob("train-*")
    placements = pq.read_table(shard)["placement"].to_pylist()
    for row in range(0, len(arrays), 7):
        emotion, attribute = arrays.captions[row]
        assert [(p.text, p.region) for p in emotion.phrases] == [("smiling", "mask 0")]
        assert [(p.text, p.region) for p in attribute.phrases] == [("short brown hair", "mask 1")]
        planes = np.asarray(arrays.masks[row])
        assert mask_of(planes, 0).all() and not mask_of(planes, 2).any()
        # The left half of the picture, wherever the portrait was cut.
        _, width, left, _, side = placements[row]
        edge = (width / 2 - left) * 64 / side
        wide = mask_of(planes, 1).sum(axis=1)
        assert len(set(wide)) == 1 and abs(wide[0] - np.clip(edge, 0, 64)) <= 1
    small = load_arrays(tmp_path / "set", "train", size=32, labelled=False)
    assert mask_of(np.asarray(small.masks[0]), 0).all()


def test_other_masks_are_another_request(published, tmp_path):
    root, masks = tmp_path / "rows", tmp_path / "masks"
    items = json.loads((published / "train.json").read_text())[:6]
    root.mkdir()
    (root / "train.json").write_text(json.dumps(items))
    for folder in ("Emotion", "Attribute"):
        shutil.copytree(published / folder, masks / folder)
    more = (f"data.images={published}", f"data.masks={masks}")
    path = root / "train.json"
    status, output = run(main, *words(path, tmp_path / "set", *more))
    assert status == 0, output
    shutil.copytree(masks, tmp_path / "moved")
    (tmp_path / "moved" / "notes.txt").write_text("what is no mask does not count")
    status, output = run(main, *words(path, tmp_path / "set", more[0], f"data.masks={tmp_path / 'moved'}"))
    assert status == 0, output
    Image.fromarray(np.zeros((128, 128), np.uint8)).save(tmp_path / "moved" / "Emotion" / items[0]["image"][7:])
    status, output = run(main, *words(path, tmp_path / "set", more[0], f"data.masks={tmp_path / 'moved'}"))
    assert status == 2 and "(masks differ)" in output


def test_masks_that_do_not_fit_are_counted(published, tmp_path):
    items = json.loads((published / "train.json").read_text())
    items[0]["atrribute_parsing_masks"][0]["mask"] = "nowhere.png"
    items[1]["emotion_parsing_masks"][0]["token_indices"] = [0]
    items[2]["emotion_parsing_masks"][0]["mask"] = "../../secret.png"
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(published / "Attribute" / "wide.png")
    items[3]["atrribute_parsing_masks"][0]["mask"] = "wide.png"
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(published / "Attribute" / "large.png")
    items[4]["atrribute_parsing_masks"][0]["mask"] = "large.png"
    (published / "damaged.json").write_text(json.dumps(items))
    path = published / "damaged.json"
    status, output = run(main, *words(path, tmp_path / "set", "data.max_bad_share=0.5", "data.max_pixels=20000"))
    assert status == 0, output
    rejected = json.loads((tmp_path / "set" / "dataset.json").read_text())["rejected"]
    assert (rejected["no_mask"], rejected["bad_mask"]) == (2, 3)
    status, output = run(main, *words(path, tmp_path / "other", "captions=made"))
    assert status == 2 and "data.layout=facecaptionmask" in output
    words_of_people = [word for word in words(path, tmp_path / "other") if word != "data.identity=none"]
    status, output = run(main, *words_of_people)
    assert status == 2 and "data.identity=none" in output
