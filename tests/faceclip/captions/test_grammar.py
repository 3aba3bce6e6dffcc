"""The grammar of captions with attributes that are partly unknown, and what only photographs have."""

import numpy as np
import pytest

from faceclip.captions.grammar import LONGEST, sentences
from faceclip.captions.wording import PHOTOGRAPHS
from faceclip.data.records import PHOTO_VOCABULARIES, REGIONS, VOCABULARIES

EVERYTHING = frozenset(REGIONS)


def captions(seed: int, **attributes: str):
    return sentences(attributes, EVERYTHING, np.random.default_rng(seed), PHOTOGRAPHS)


def test_nothing_is_said_of_what_is_unknown():
    generator = np.random.default_rng(0)
    named: set[str] = set()
    for seed in range(300):
        known = {
            name: values[int(generator.integers(len(values)))]
            for name, values in PHOTO_VOCABULARIES.items()
            if generator.random() < 0.4
        }
        unknown = {name: "" for name in PHOTO_VOCABULARIES if name not in known}
        made = sentences(known | unknown, EVERYTHING, np.random.default_rng(seed), PHOTOGRAPHS)
        assert made == captions(seed, **known)
        assert len(made) == (4 if "expression" in known else 2)
        for caption in made:
            assert set(caption.named) <= set(known) and len(set(caption.named)) == len(caption.named)
            assert caption.text[0].isupper() and caption.text.endswith(".") and "  " not in caption.text
            assert all(caption.text[p.start : p.end] == p.text and p.region in REGIONS for p in caption.phrases)
            named |= set(caption.named)
    # "clothes" and so on are said of renders too; only textures and hat colours need something else beside them.
    assert named == set(PHOTO_VOCABULARIES)


def test_a_portrait_of_which_nothing_is_known_is_a_person():
    for caption in captions(0):
        assert caption.phrases == () and ("person" in caption.text.lower() or "someone" in caption.text.lower())


@pytest.mark.parametrize(
    ("attributes", "words", "region"),
    [
        ({"mouth": "open"}, ("open mouth", "parted lips"), "lips"),
        ({"eyes": "closed"}, ("closed eyes", "shut eyes"), "eyes"),
        ({"brows": "raised"}, ("raised eyebrows", "raised brows"), "brows"),
        ({"head": "left"}, ("turned to the left",), "skin"),
        ({"light": "right"}, ("light from the right",), "skin"),
        ({"sex": "female", "age": "old"}, ("elderly woman",), "skin"),
        ({"sex": "male", "age": "child"}, ("boy",), "skin"),
        ({"clothes_color": "brown"}, ("brown clothes", "brown clothing"), "clothes"),
        ({"background_color": "orange"}, ("an orange background", "an orange backdrop"), "background"),
        ({"hair_length": "long"}, ("long hair",), "hair"),
    ],
)
def test_what_is_read_is_said_of_its_region(attributes, words, region):
    found = [c for seed in range(12) for c in captions(seed, **attributes) if c.phrases]
    assert found
    for caption in found:
        (phrase,) = caption.phrases
        assert phrase.region == region and set(phrase.attributes) <= set(attributes)
        assert any(word in phrase.text.lower() for word in words)
    assert {name for c in found for name in c.named} == set(attributes)


def test_the_size_of_the_face_opens_the_sentence():
    texts = {c.text for seed in range(20) for c in captions(seed, face_size="close", hair_color="black")}
    assert any(text.startswith("A close-up of ") for text in texts)
    assert any(not text.startswith("A close-up") for text in texts)


def test_a_caption_lists_so_many_things_at_most():
    known = {name: values[-1] for name, values in PHOTO_VOCABULARIES.items() if name != "hair_length"}
    for seed in range(30):
        for caption in captions(seed, **known):
            assert len(caption.phrases) <= LONGEST + 5  # an opening, the person, a mood, a negation, a background


def test_photographs_know_every_value_of_renders():
    for name, values in VOCABULARIES.items():
        assert PHOTO_VOCABULARIES[name][: len(values)] == values
