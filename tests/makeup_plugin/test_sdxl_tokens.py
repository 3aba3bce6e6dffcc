"""The positions of phrases are those of both tokenizers of SDXL, whose vocabulary open_clip's is."""

import pytest
from open_clip.tokenizer import SimpleTokenizer
from transformers import CLIPTokenizer

from faceclip.captions.mentions import link_mentions
from makeup_plugin.phrases import phrase_token_mask

CAPTIONS = (
    "A close-up of a young woman with light-brown hair, raised eyebrows and an open mouth, in front of a dark wall.",
    "Her hair is long; the hair's colour isn't natural, with 3 earrings & make-up.",
    "An astonishingly bespectacled, red-haired man: thick glasses, unkempt moustache.",
)


@pytest.fixture(scope="module")
def tokenizers() -> list[CLIPTokenizer]:
    """As SDXL's folders `tokenizer` and `tokenizer_2` have them: they differ in what pads."""
    ours = SimpleTokenizer()
    merges = sorted(ours.bpe_ranks, key=ours.bpe_ranks.__getitem__)
    vocabulary = {
        word.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>"): number
        for word, number in ours.encoder.items()
    }
    return [
        CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)
        for pad in ("<|endoftext|>", "!")
    ]


@pytest.mark.parametrize("text", CAPTIONS)
def test_phrases_have_the_same_tokens_for_both_tokenizers_of_sdxl(tokenizers, text):
    phrases = link_mentions(text).phrases
    assert len(phrases) >= 2
    for tokenizer in tokenizers:
        encoded = tokenizer(text, padding="max_length", truncation=True, return_offsets_mapping=True)
        for phrase in phrases:
            mask = phrase_token_mask(text, phrase.start, phrase.end)
            theirs = [a < phrase.end and b > phrase.start and b > a for a, b in encoded["offset_mapping"]]
            marked = [number for number, hit in enumerate(mask.tolist()) if hit]
            assert marked and set(marked) >= {number for number, hit in enumerate(theirs) if hit}
            words = tokenizer.decode([encoded["input_ids"][number] for number in marked]).lower()
            assert phrase.text.split()[-1].lower().split("-")[-1] in words
