"""Train the evaluation's second recognizer: a small residual network with its own seed.

python -m eval.judges.second_recognizer data=DIR [--preset tiny] [trainer.steps=…]
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from eval.judges.networks import SecondRecognizer
from faceclip.settings import setting
from faceclip.statistics import Estimate
from faceclip.training import TrainerConfig
from faceclip.training.towers.command import TowerConfig, run_tower
from faceclip.training.towers.crops import CropSource, JitterConfig
from faceclip.training.towers.recognition import IdentityTask, MarginConfig, measure_identity


@dataclass(kw_only=True)
class ResNetConfig:
    """Sizes of `eval.judges.networks.SecondRecognizer`."""

    image_size: int = setting(64, "px of the crop")
    widths: list[int] = setting(factory=lambda: [32, 64, 128, 192], help="channels of the stages")
    embedding_dim: int = setting(128, "of the identity")


@dataclass(kw_only=True)
class SecondRecognizerConfig(TowerConfig):
    """Everything that decides the second recognizer's training."""

    out: str = setting("runs/towers/second_recognizer", "folder of the run", resume="free", path=True)
    model: ResNetConfig = field(default_factory=ResNetConfig)
    margin: MarginConfig = field(default_factory=MarginConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


def build(config: SecondRecognizerConfig) -> tuple[IdentityTask, CropSource]:
    """Builds the model, task and source of a configuration."""
    sizes = config.model
    model = SecondRecognizer(image_size=sizes.image_size, widths=tuple(sizes.widths), embedding_dim=sizes.embedding_dim)
    source = CropSource(Path(config.data), "train", size=sizes.image_size, jitter=config.jitter)
    return IdentityTask(model, source=source, margin=config.margin, directory=Path(config.data)), source


def measure(path: Path, config: SecondRecognizerConfig) -> dict[str, Estimate]:
    """Measures rank-1 on the test identities of the exported recognizer."""
    model = SecondRecognizer.from_pretrained(path)
    return measure_identity(model, Path(config.data), size=model.config.image_size)


main = partial(
    run_tower,
    SecondRecognizerConfig,
    package="eval.judges",
    name="second_recognizer",
    build=build,
    measure=measure,
    title="Second face recognizer (residual network, 64 px; evaluation only)",
    summary=(
        "A small residual network of other architecture and seed than the recognizer that conditions the "
        "generator. It only scores generated images; no training ever sees it."
    ),
)

if __name__ == "__main__":
    sys.exit(main())
