"""What the judge finds in the pictures of a base joins the figures of its card."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from eval.judges.base import judged_prompts, main
from eval.judges.networks import Judge
from faceclip.data.arrays import load_arrays
from faceclip.data.records import VOCABULARIES
from faceclip.statistics import Estimate
from faceclip.towers.text import TextTower
from faceclip.training.towers.card import Card, dataset_facts, write_card
from train_generator.towers import base, vae

NOISE = Estimate(value=0.5, low=0.25, high=0.75, count=8, identities=2)


@pytest.fixture(scope="module")
def words(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that measure an untrained base with a card, 32 px."""
    root = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    for name, width in (("text_l", 16), ("text_g", 24)):
        tower = TextTower(width=width, layers=1, heads=2, embed_dim=8, vocabulary=list(range(256, 4000)))
        tower.save_pretrained(root / name)
    Judge(vocabularies=VOCABULARIES, image_size=32, widths=(8, 8), hidden=8).save_pretrained(root / "judge")
    vae.make_model(vae.AutoencoderConfig(widths=[8, 8, 16], groups=4), 32).save_pretrained(root / "vae")
    sizes = base.UNetConfig(widths=[8, 16], head_dim=8, groups=4)
    unet = base.make_model(sizes, latents=(8, 8), context=40, pooled=24)
    unet.save_pretrained(root / "export" / "unet")
    DDIMScheduler().save_pretrained(root / "export" / "scheduler")
    data = dataset_facts(tiny_dataset)
    card = Card(
        title="Base", summary="Words.", command="python -m it", seed=1, steps=2, samples=3, data=data, notes="End."
    )
    write_card(root / "export" / "unet", card, {"velocity error": NOISE})
    parts = [f"{name}={root / name}" for name in ("export", "vae", "text_l", "text_g", "judge")]
    return [f"data={tiny_dataset}", *parts, "steps=2"]


def card_of(words: list[str]) -> Path:
    return Path(next(word for word in words if word.startswith("export=")).removeprefix("export=")) / "unet"


def test_figures_join_the_card(words: list[str]) -> None:
    folder = card_of(words)
    for count in (6, 7):
        assert main([*words, f"images={count}"]) == 0
        facts = json.loads((folder / "metrics.json").read_text())
        figure = facts["metrics"]["named attributes judged present, all"]
        assert figure["count"] == count and 0 <= figure["value"] <= 1
        assert facts["metrics"]["velocity error"] == NOISE.to_dict() and facts["command"] == "python -m it"
    card = (folder / "README.md").read_text()
    assert card.count("| velocity error | 0.500 | 0.250 to 0.750 | 8 | 2 |") == 1
    assert card.count("named attributes judged present, all") == 1
    assert card.startswith("---") and "\nWords.\n" in card and card.endswith("\n\nEnd.\n")


@pytest.mark.parametrize("name", ["export", "vae", "text_l", "text_g", "judge"])
def test_a_missing_part_is_named(words: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*words, f"{name}={tmp_path / 'nowhere'}"]) == 2
    assert re.match(rf"error: .*{tmp_path / 'nowhere'}", capsys.readouterr().err)


@pytest.mark.parametrize("word", ["export=", "data=", "images=0", "steps=0", "precision=fp8"])
def test_a_wrong_argument_is_named(words: list[str], word: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*words, word]) == 2
    assert capsys.readouterr().err.startswith(f"error: {word.split('=')[0]}: ")


def test_prompts_to_measure_name_what_their_portrait_has(tiny_dataset):
    arrays = load_arrays(tiny_dataset, "test", size=32)
    prompts, wanted, people = judged_prompts(arrays, 5)
    assert len(prompts) == len(wanted) == len(people) == 5
    words = {"red": ("red", "ginger"), "gray": ("gray", "grey"), "blond": ("blond",)}
    for text_of, names in zip(prompts, wanted, strict=True):
        if "hair_color" in names:
            color = names["hair_color"]
            assert any(f"{word}" in text_of for word in words.get(color, (color,)))
