"""Mentions of regions in given captions: all of them, without those that are denied."""

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
