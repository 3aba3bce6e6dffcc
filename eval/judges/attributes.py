"""Train the evaluation's judge: portrait → attributes, head pose, landmarks. No other training uses it.

python -m eval.judges.attributes data=DIR [--preset tiny] [trainer.steps=…]
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.judges.networks import POSE_SCALE, Judge
from faceclip.data.arrays import load_arrays
from faceclip.settings import setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.training import MapSource, StepContext, Task, TrainerConfig
from faceclip.training.towers.command import TowerConfig, run_tower
from faceclip.training.towers.crops import JitterConfig, jitter_image
from faceclip.training.towers.labels import visible_labels

SMILES = frozenset({"smile", "laugh"})


@dataclass(kw_only=True)
class JudgeNetConfig:
    """Sizes of `eval.judges.networks.Judge` and the attributes it reads."""

    attributes: list[str] = setting(
        factory=lambda: ["hair_color", "glasses", "hat", "beard", "expression"], help="read from the picture"
    )
    image_size: int = setting(64, "px of the picture")
    widths: list[int] = setting(factory=lambda: [32, 64, 128, 192], help="channels of the stages")
    hidden: int = setting(256, "width before the heads")


@dataclass(kw_only=True)
class JudgeConfig(TowerConfig):
    """Everything that decides the judge's training."""

    out: str = setting("runs/towers/judge", "folder of the run", resume="free", path=True)
    model: JudgeNetConfig = field(default_factory=JudgeNetConfig)
    jitter: JitterConfig = field(default_factory=JitterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


class LabelledSource(MapSource):
    """Portraits of one split with attribute classes, pose and landmarks.

    Fields: image (3, S, S) uint8, pose (3,) degrees, landmarks (5, 2) as fractions −1 … 1 of the image, and
    one class per attribute under its name. Hair color is −100 (ignored) where no hair is visible.
    """

    def __init__(self, directory: Path, split: str, *, size: int, attributes: list[str], jitter: JitterConfig) -> None:
        self.arrays = load_arrays(directory, split, size=size)
        self.jitter = jitter
        self.labels = visible_labels(self.arrays, attributes)
        points = np.asarray(self.arrays.landmarks_5, dtype=np.float32)
        self.points = (points + 0.5) / size * 2 - 1

    def __len__(self) -> int:
        return len(self.points)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns one training sample."""
        image = jitter_image(np.asarray(self.arrays.images[index]), rng, self.jitter)
        sample = {name: labels[index] for name, labels in self.labels.items()}
        sample["image"] = np.ascontiguousarray(image.transpose(2, 0, 1))
        sample["pose"] = np.asarray(self.arrays.pose[index], dtype=np.float32)
        sample["landmarks"] = self.points[index]
        return sample


class JudgeTask(Task):
    """Cross-entropies of the attributes, and absolute errors of pose and landmarks."""

    def __init__(self, model: Judge, source: LabelledSource, directory: Path) -> None:
        self.modules = nn.ModuleDict({"judge": model})
        self.names = list(source.labels)
        self.directory = directory

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum of all terms for one batch of `LabelledSource`."""
        seen = self.modules["judge"](batch["image"].float() / 255)
        parts = {name: F.cross_entropy(seen.attributes[name], batch[name]) for name in self.names}
        parts["pose"] = F.l1_loss(seen.pose, batch["pose"].float()) / POSE_SCALE
        size = batch["image"].shape[-1]
        points = (seen.landmarks + 0.5) / size * 2 - 1
        parts["landmarks"] = F.l1_loss(points, batch["landmarks"].float())
        total = sum(parts[name] for name in self.names) / len(self.names)
        total = total + 2 * parts["pose"] + 5 * parts["landmarks"]
        return total, {name: part.detach() for name, part in parts.items()}

    def validate(self, step: int) -> dict[str, float]:
        """Measures the figures of the card on the validation identities."""
        figures = measure(self.modules["judge"], self.directory, "validation")
        return {name: figure.value for name, figure in figures.items()}

    def export(self, directory: Path) -> None:
        """Writes the judge as `Judge.from_pretrained` reads it."""
        self.modules["judge"].save_pretrained(directory)


@torch.inference_mode()
def measure(model: Judge, directory: Path, split: str, *, batch: int = 64) -> dict[str, Estimate]:
    """Measures the accuracy of every attribute (hair color where hair is visible), smile, pose and landmark errors."""
    arrays = load_arrays(directory, split, size=model.config.image_size)
    training, device = model.training, next(model.parameters()).device
    model.eval()
    seen = []
    for start in range(0, len(arrays.images), batch):
        images = torch.from_numpy(np.array(arrays.images[start : start + batch])).to(device).permute(0, 3, 1, 2)
        seen.append(model(images.float() / 255))
    model.train(training)
    identity = np.asarray(arrays.identity)
    labels = visible_labels(arrays, list(model.config.vocabularies))
    figures = {}
    for name, truth in labels.items():
        guess = torch.cat([part.attributes[name] for part in seen]).argmax(dim=1).cpu().numpy()
        visible = truth != -100
        figures[f"accuracy_{name}"] = identity_bootstrap((guess == truth)[visible], identity[visible])
        if name == "expression":
            smiles = np.array([value in SMILES for value in model.config.vocabularies[name]])
            figures["accuracy_smile"] = identity_bootstrap(smiles[guess] == smiles[truth], identity)
    pose = np.abs(torch.cat([part.pose for part in seen]).cpu().numpy() - np.asarray(arrays.pose))
    figures["pose_error_degrees"] = identity_bootstrap(pose.mean(axis=1), identity)
    for axis, name in enumerate(("yaw", "pitch", "roll")):
        figures[f"{name}_error_degrees"] = identity_bootstrap(pose[:, axis], identity)
    points = torch.cat([part.landmarks for part in seen]).cpu().numpy() - np.asarray(arrays.landmarks_5)
    figures["landmark_error_px"] = identity_bootstrap(np.linalg.norm(points, axis=-1).mean(axis=1), identity)
    return figures


def build(config: JudgeConfig) -> tuple[JudgeTask, LabelledSource]:
    """Builds the model, task and source of a configuration."""
    size, names = config.model.image_size, config.model.attributes
    directory = Path(config.data)
    source = LabelledSource(directory, "train", size=size, attributes=names, jitter=config.jitter)
    vocabularies = {name: list(source.arrays.vocabularies[name]) for name in names}
    model = Judge(
        vocabularies=vocabularies, image_size=size, widths=tuple(config.model.widths), hidden=config.model.hidden
    )
    return JudgeTask(model, source, directory), source


main = partial(
    run_tower,
    JudgeConfig,
    package="eval.judges",
    name="attributes",
    build=build,
    measure=lambda path, config: measure(Judge.from_pretrained(path), Path(config.data), "test"),
    title="Attribute and pose judge, 64 px (evaluation only)",
    summary=(
        "A small residual network that reads attributes, head pose and five landmarks from a rendered "
        "portrait. It only evaluates generated images: nothing was ever trained against it."
    ),
)

if __name__ == "__main__":
    sys.exit(main())
