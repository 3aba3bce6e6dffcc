"""Captions by a vision-language model: a small random LLaVA in the published layout."""

from pathlib import Path

import numpy as np
import pytest

from faceclip.captions.captioner import MOST, QUESTION, QUESTIONS, Captioner, caption_of
from faceclip.errors import CheckpointError
from tests.captioners import save_llava


def test_a_model_of_transformers_replies_without_sampling(tmp_path: Path):
    captioner = Captioner(str(save_llava(tmp_path)))
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8))
    replies = captioner.ask(pictures)
    assert len(replies) == 2 and all(isinstance(reply, str) for reply in replies)
    assert captioner.ask(pictures) == replies
    assert QUESTION in captioner.facts and captioner.facts != Captioner(str(save_llava(tmp_path, seed=1))).facts


def test_replies_become_captions_with_linked_regions():
    caption = caption_of('\n "A woman with  long black hair and no hat."\nShe smiles.')
    assert caption is not None and caption.text == "A woman with long black hair and no hat." and caption.kind == "free"
    assert [(phrase.text, phrase.region) for phrase in caption.phrases] == [("long black hair", "hair")]
    assert caption_of(" \n...") is None and caption_of("a" * (MOST + 1)) is None
    assert QUESTIONS[QUESTION].startswith("Describe the person")


def test_what_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"captioner=.*hf download nobody/nothing"):
        Captioner("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"captioner=.*image-text-to-text"):
        Captioner(str(tmp_path))
