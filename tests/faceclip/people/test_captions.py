"""Captions say what is there and visible, with exact spans."""

import numpy as np
import pytest

from faceclip.captions.visibility import seen_values
from faceclip.data.records import REGIONS, VOCABULARIES, caption_from_dict, caption_to_dict
from faceclip.errors import DataError
from faceclip.people.rows import describe

# Every region covers 1/13 of the map.
ALL_VISIBLE = np.repeat(np.arange(len(REGIONS), dtype=np.uint8), 13).reshape(13, 13)
PERSON = {
    "hair_color": "red",
    "hair_length": "long",
    "hair_texture": "wavy",
    "beard": "none",
    "glasses": "round",
    "hat": "none",
    "hat_color": "blue",
    "makeup": "none",
    "clothes": "hoodie",
    "clothes_color": "orange",
    "expression": "smile",
    "background_color": "gray",
}


def captions_of(seed: int, regions: np.ndarray = ALL_VISIBLE, **changes: str):
    return describe({**PERSON, **changes}, regions, np.random.default_rng(seed))


def random_person(generator: np.random.Generator) -> dict[str, str]:
    return {name: values[int(generator.integers(len(values)))] for name, values in VOCABULARIES.items()}


def test_spans_regions_and_attributes_are_valid_for_every_kind_of_person():
    generator = np.random.default_rng(0)
    for _ in range(300):
        captions = describe(random_person(generator), ALL_VISIBLE, generator)
        assert {caption.kind for caption in captions} == {"attributes", "emotion", "both"}
        for caption in captions:
            assert caption.phrases and caption.text[0].isupper() and caption.text.endswith(".")
            assert "  " not in caption.text and " ," not in caption.text
            for phrase in caption.phrases:
                assert caption.text[phrase.start : phrase.end] == phrase.text
                assert phrase.region in REGIONS and set(phrase.attributes) <= set(VOCABULARIES)
            assert len(set(caption.named)) == len(caption.named)


def test_wording_and_length_vary():
    texts = [caption.text for seed in range(40) for caption in captions_of(seed)]
    assert len(set(texts)) > 100
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 4 and max(lengths) >= 15


def test_stated_values_are_the_labels():
    hair = {"red": ("red hair", "ginger hair"), "black": ("black hair",)}
    for color, words in hair.items():
        for seed in range(30):
            for caption in captions_of(seed, hair_color=color):
                if "hair_color" in caption.named:
                    assert any(word in caption.text for word in words)
                    assert not any(w in caption.text for c in hair if c != color for w in hair[c])


def test_emotion_captions_state_the_emotion_alone():
    for seed in range(30):
        (emotion,) = (caption for caption in captions_of(seed) if caption.kind == "emotion")
        assert emotion.named == ("expression",)
        assert any(word in emotion.text.lower() for word in ("smil", "happy"))
        (both,) = (caption for caption in captions_of(seed) if caption.kind == "both")
        assert "expression" in both.named and len(both.named) > 1


def test_hidden_attributes_are_not_stated():
    hidden = ALL_VISIBLE.copy()
    hidden[np.isin(hidden, [REGIONS.index("hair"), REGIONS.index("clothes"), REGIONS.index("glasses")])] = 0
    for seed in range(30):
        for caption in captions_of(seed, hidden):
            assert not {"hair_color", "clothes", "glasses"} & set(caption.named)


def test_a_hat_hides_how_long_the_hair_is_and_whether_there_is_any():
    for seed in range(30):
        for caption in captions_of(seed, hat="cap"):
            assert "hair_length" not in caption.named
        for caption in captions_of(seed, hat="cap", hair_length="bald"):
            assert "bald" not in caption.text


def test_values_that_cannot_be_seen_are_left_empty():
    """Plain; bald; with a hat; glasses and hair out of sight. What captions name, and only that, is there."""
    people = [{}, {"hair_length": "bald"}, {"hat": "cap"}, {}]
    regions = np.stack([ALL_VISIBLE] * 4)
    regions[1][regions[1] == REGIONS.index("hair")] = 0
    regions[3][np.isin(regions[3], [REGIONS.index("hair"), REGIONS.index("glasses")])] = 0
    values = {name: np.array([{**PERSON, **person}[name] for person in people]) for name in PERSON}
    seen = seen_values(values, regions)
    assert seen["hair_color"].tolist() == ["red", "", "red", ""]
    assert seen["hair_length"].tolist() == ["long", "bald", "", ""]
    assert seen["glasses"].tolist() == ["round", "round", "round", ""]
    assert seen["hat"].tolist() == ["none", "none", "cap", "none"]
    assert seen["beard"].tolist() == ["none"] * 4 and seen["expression"].tolist() == ["smile"] * 4
    assert values["hair_color"].tolist() == ["red"] * 4
    generator = np.random.default_rng(0)
    for _ in range(60):
        person = random_person(generator)
        labels = np.where(generator.random((13, 13)) < 0.5, ALL_VISIBLE, 0)
        if person["hair_length"] == "bald":
            labels[labels == REGIONS.index("hair")] = 0
        shown = seen_values({name: np.array([value]) for name, value in person.items()}, labels[None])
        for caption in describe(person, labels, generator):
            assert all(shown[name][0] == person[name] for name in caption.named)


def test_same_generator_same_captions():
    assert captions_of(3) == captions_of(3)


def test_stored_form_round_trips():
    for caption in captions_of(1):
        assert caption_from_dict(caption_to_dict(caption)) == caption


def test_unknown_values_are_refused():
    with pytest.raises(DataError, match="glasses='heart'"):
        captions_of(0, glasses="heart")
    with pytest.raises(DataError, match="label 13"):
        captions_of(0, np.full((4, 4), 13, np.uint8))
