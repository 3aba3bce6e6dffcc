"""Judges the pictures of a tiny base, and adds the figures to its card.

python -m eval.judges.base export=DIR data=DIR [judge=DIR vae=DIR text_l=DIR text_g=DIR guidance=… steps=…]

`export` is what `python -m train_generator.towers.base` exported, and `data` the data set of its card.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from eval.arguments import load_model
from eval.judges.networks import Judge
from eval.prompt import prompt_scores
from faceclip import weights
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.errors import ConfigError
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.towers.text import TextTower
from faceclip.towers.text_pair import TextPair
from faceclip.training.towers.command import renew_cards
from faceclip.training.towers.labels import JUDGED
from makeup_plugin.plain_sampling import sample_portraits


@dataclass(kw_only=True)
class BaseMeasurement:
    """Base, judge and number of pictures. 1,600 pictures name each judged attribute for more than 200 of 300 people."""

    export: str = setting(help="export of `python -m train_generator.towers.base`", path=True)
    data: str = setting(help="data set of its card", path=True)
    vae: str = setting("", "autoencoder; '': that of the export", path=True)
    text_l: str = setting("", "text tower; '': the shipped one", path=True)
    text_g: str = setting("", "text tower; '': the shipped one", path=True)
    judge: str = setting("", "judge; '': the shipped one", path=True)
    images: int = setting(1600, "pictures that the figures stand on", least=1)
    guidance: float = setting(2.0, "of these pictures")
    steps: int = setting(20, "of these pictures", least=1)
    precision: Literal["fp32", "bf16"] = setting("bf16", "bf16 products make the pictures in about half the time")

    def __post_init__(self) -> None:
        for name in ("export", "data"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: is empty; name a folder, as in {name}=DIR")


def measure(config: BaseMeasurement, split: str = "test") -> dict[str, Estimate]:
    """Measures how often the judge finds what prompts of a split name, in pictures of fixed seeds.

    Raises CheckpointError, which begins with the argument, for a part that is missing or damaged.
    """
    towers = TextPair(
        load_model(TextTower, _folder(config.text_l, "tiny/text_tower_l", "faceclip"), "text_l"),
        load_model(TextTower, _folder(config.text_g, "tiny/text_tower_g", "faceclip"), "text_g"),
    )
    judge = load_model(Judge, _folder(config.judge, "tiny/judge", "eval"), "judge")
    vae = load_model(AutoencoderKL, Path(config.vae) if config.vae else Path(config.export) / "vae", "vae")
    unet = load_model(UNet2DConditionModel, Path(config.export) / "unet", "export")
    size = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    prompts, wanted, people = judged_prompts(load_arrays(config.data, split, size=size), config.images)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        images = sample_portraits(
            unet,
            vae,
            DDIMScheduler.from_pretrained(Path(config.export) / "scheduler"),
            towers,
            prompts,
            steps=config.steps,
            guidance=config.guidance,
            size=size,
        ).float()
    judged: dict[str, list[str]] = {name: [] for name in judge.config.vocabularies}
    for part in images.split(64):  # all at once would need gigabytes
        for name, values in judge.values(part).items():
            judged[name].extend(values)
    figures = {}
    for label, exact in (("named attributes judged present", False), ("exact value judged", True)):
        scores = prompt_scores(wanted, judged, exact=exact)
        for name in scores:
            known = ~np.isnan(scores[name])
            if known.any():
                figures[f"{label}, {name}"] = identity_bootstrap(scores[name][known], people[known])
    return figures


def judged_prompts(arrays: FaceArrays, count: int) -> tuple[list[str], list[dict[str, str]], np.ndarray]:
    """Returns texts that name judged attributes, what they name, and whose portrait they were written for."""
    prompts, wanted, people = [], [], []
    for row in np.random.default_rng(0).permutation(len(arrays)):
        for caption in arrays.captions[row]:
            if caption.kind == "both" and set(caption.named) & set(JUDGED):
                prompts.append(caption.text)
                wanted.append({name: str(arrays.attribute_values(name)[row]) for name in caption.named})
                people.append(int(arrays.identity[row]))
        if len(prompts) >= count:
            break
    return prompts[:count], wanted[:count], np.array(people[:count])


def _folder(given: str, shipped: str, package: str) -> Path:
    return Path(given) if given else weights.path(shipped, package=package)


def measure_again(config: BaseMeasurement) -> None:
    """Puts the judge's figures into the card of an export and prints them."""
    export = Path(config.export)
    figures = renew_cards([export / "unet"], Path(config.data), lambda: measure(config))
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    print(f"figures renewed in {export / 'unet'}")


main = partial(run, measure_again, BaseMeasurement)

if __name__ == "__main__":
    sys.exit(main())
