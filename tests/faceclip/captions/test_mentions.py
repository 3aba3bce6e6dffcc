"""Mentions of regions in given captions: all of them, without those that are denied."""

import time

import pytest

from faceclip.captions.mentions import link_mentions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Long wavy hair. Her hair is tied.", [("Long wavy hair", "hair"), ("hair", "hair")]),
        ("big, bright blue eyes and red lips", [("big, bright blue eyes", "eyes"), ("red lips", "lips")]),
        ("He has no beard and brown eyes", [("brown eyes", "eyes")]),
        ("without a hat or glasses, in a dark-blue suit", [("dark-blue suit", "clothes")]),
        ("not wearing any glasses", []),
        ("He does not have a beard.", []),
        ("He does not wear glasses and has brown hair.", [("brown hair", "hair")]),
        ("She doesn't wear a hat.", []),
        ("She doesn’t wear glasses.", []),
        ("He isn't wearing a hat.", []),
        ("without any facial hair or glasses", []),
        ("no hat, brown hair, blue eyes", [("brown hair", "hair"), ("blue eyes", "eyes")]),
        ("He has no beard, short brown hair and blue eyes", [("short brown hair", "hair"), ("blue eyes", "eyes")]),
        ("no glasses, a red shirt", [("red shirt", "clothes")]),
        ("no hat, glasses or beard", []),
        ("no hat, glasses, or beard, brown eyes", [("brown eyes", "eyes")]),
        ("neither a hat nor glasses; blue eyes", [("blue eyes", "eyes")]),
        ("a man in a capital city, hairy, with sunglasses", [("sunglasses", "glasses")]),
        ("A YOUNG FACE WITH FRECKLES", [("YOUNG FACE", "skin"), ("FRECKLES", "skin")]),
        ("", []),
    ],
)
def test_every_mention_is_linked_with_its_adjectives(text, expected):
    caption = link_mentions(text)
    assert [(phrase.text, phrase.region) for phrase in caption.phrases] == expected
    assert all(text[phrase.start : phrase.end] == phrase.text for phrase in caption.phrases)
    assert caption.kind == "free" and caption.named == ()


@pytest.mark.parametrize("words", ["red ", "red-", "red and ", "no hat, "])
def test_the_longest_caption_is_read_at_once(words):
    text = (words * 100_000)[:100_000]
    begin = time.perf_counter()
    link_mentions(text)
    assert time.perf_counter() - begin < 20  # seconds on a busy machine; a walk to the end from each word takes minutes
