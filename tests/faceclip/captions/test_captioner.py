"""Captions by a vision-language model: a small random LLaVA in the published layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from faceclip.captions.captioner import MOST, QUESTION, QUESTIONS, Captioner, caption_of
from faceclip.errors import CheckpointError
from tests.captioners import save_llava


def test_a_model_of_transformers_replies_without_sampling(tmp_path: Path):
    generation = save_llava(tmp_path) / "generation_config.json"
    generation.write_text(json.dumps(json.loads(generation.read_text()) | {"do_sample": True, "temperature": 5.0}))
    captioner = Captioner(str(tmp_path))
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json"])
def test_damaged_files_are_refused(saved, tmp_path, name):
    folder = shutil.copytree(saved, tmp_path / "{model}")
    for content in ((saved / name).read_bytes()[:-20], b"junk" * 9):
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"captioner=.*image-text-to-text|{name} is not valid"):
            Captioner(str(folder))


def test_weights_that_are_missing_or_no_numbers_are_refused(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    whole = load_file(saved / "model.safetensors")
    name = next(key for key in whole if "q_proj" in key and "language" in key)
    for value, message in (
        (None, r"lacks the weights .*q_proj"),
        (torch.zeros(3, 3), r"image-text-to-text"),
        (torch.full_like(whole[name], float("nan")), r"q_proj.* NaN"),
    ):
        changed = {key: kept for key, kept in (whole | {name: value}).items() if kept is not None}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=rf"captioner=.*{message}"):
            Captioner(str(folder))


def test_facts_depend_on_what_decides_replies(saved, tmp_path):
    folder, facts = shutil.copytree(saved, tmp_path / "model"), Captioner(str(saved)).facts
    (folder / "README.md").write_text("a model")
    config = json.loads((folder / "config.json").read_text()) | {"transformers_version": "4.0.0"}
    (folder / "config.json").write_text(json.dumps(config))
    assert Captioner(str(folder)).facts == facts
    found = {facts}
    for file in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
        path = folder / file
        path.write_text(path.read_text() + "\n")
        found.add(Captioner(str(folder)).facts)
    assert len(found) == 4
