"""Trains the tiny face recognizer, a small ViT of the full-size recognizer's class, by ArcFace's loss.

python -m train_encoder.towers.recognizer data=DIR [--preset tiny] [trainer.steps=…]
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from faceclip.settings import setting
from faceclip.statistics import Estimate
from faceclip.towers.face import FaceViT
from faceclip.training import TrainerConfig
from faceclip.training.towers.command import TowerConfig, run_tower
from faceclip.training.towers.crops import CropSource, JitterConfig
from faceclip.training.towers.recognition import IdentityTask, MarginConfig, measure_identity


@dataclass(kw_only=True)
class ViTConfig:
    """Sizes of `FaceViT`."""

    image_size: int = setting(72, "px of the crop")
    patch_size: int = setting(9, "px")
    width: int = setting(192, "of the transformer")
    depth: int = setting(6, "blocks")
    heads: int = setting(6, "of the attention")
    embedding_dim: int = setting(128, "of the identity")
    mlp_ratio: float = setting(4.0, "width of the feed-forward over width")


@dataclass(kw_only=True)
class RecognizerConfig(TowerConfig):
    """Settings of the command."""

    out: str = setting("runs/towers/recognizer", "folder of the run", resume="free", path=True)
    model: ViTConfig = field(default_factory=ViTConfig)
    margin: MarginConfig = field(default_factory=MarginConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def build(config: RecognizerConfig) -> tuple[IdentityTask, CropSource]:
    """Returns task and source of a configuration."""
    model = FaceViT(**vars(config.model))
    source = CropSource(Path(config.data), "train", size=config.model.image_size, jitter=config.jitter)
    return IdentityTask(model, source=source, margin=config.margin, directory=Path(config.data)), source


def measure(path: Path, config: RecognizerConfig) -> dict[str, Estimate]:
    """Measures rank-1 of the exported recognizer on the test identities."""
    model = FaceViT.from_pretrained(path)
    return measure_identity(model, Path(config.data), size=model.config.image_size)


main = partial(
    run_tower,
    RecognizerConfig,
    package="train_encoder.towers",
    name="recognizer",
    build=build,
    measure=measure,
    title="Tiny face recognizer (ViT, 72 px)",
    summary=(
        "A small vision transformer of the full-size face encoder's class that maps an aligned face crop "
        "to 64 patch tokens and a 128-d identity embedding. Trained on renders with ArcFace's margin loss "
        "and linear readouts of the head's shape coefficients and of the person's other traits (skin, eyes, "
        "lips, brows, freckles); it does not recognize people in photos."
    ),
    notes=(
        "The shipped weights were trained in two goes: 13,000 steps on a "
        "schedule that ended there, then resumed with trainer.steps=34000. At the end the training people are "
        "fitted (accuracy 1.00) and validation no longer rises: more people, not more steps, come next. What is "
        "made from this tower (the joint encoder, the generator's identity channel) must be trained again after it."
    ),
)

if __name__ == "__main__":
    sys.exit(main())
