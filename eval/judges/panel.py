"""The networks that judge pictures, and their results for many pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eval.arguments import load_model
from eval.judges.networks import Judge, SecondRecognizer
from faceclip import weights
from faceclip.errors import CheckpointError
from faceclip.face3d.fitter import FaceFitter
from faceclip.faces.batches import FacePoints, crop_batches, to_unit
from faceclip.storage.shards import ShardedArray
from faceclip.towers.face import FaceViT
from faceclip.training.towers.labels import JUDGED

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Judges:
    """The networks that look at the pictures. Only `recognizer` and `fitter`, which estimates the light, also
    serve the generator."""

    judge: Judge
    recognizer: FaceViT
    second: SecondRecognizer
    fitter: FaceFitter | None = None

    def embedders(self) -> dict[str, tuple[Embed, int]]:
        """Returns name → embedding of crops, wherever they and the network lie, and the crops' size."""
        return {
            "recognizer": (
                lambda crops: self.recognizer(crops.to(self.recognizer.device)).identity,
                self.recognizer.config.image_size,
            ),
            "second recognizer": (
                lambda crops: self.second(crops.to(self.second.device)),
                self.second.config.image_size,
            ),
        }


def load_judges(
    recognizer: FaceViT,
    judge: Path | None,
    second: Path | None,
    *,
    device: torch.device | str = "cpu",
    fitter: FaceFitter | None = None,
) -> Judges:
    """Loads the shipped judges unless other folders are given, on a device, beside a recognizer and a fitter that are
    there.

    Raises CheckpointError naming the option whose folder does not hold such a network.
    """
    judge = judge or weights.path("tiny/judge", package="eval")
    second = second or weights.path("tiny/second_recognizer", package="eval")
    network = load_model(Judge, judge, "--judge")
    unknown = [name for name in JUDGED if name not in network.config.vocabularies]
    if unknown:
        raise CheckpointError(f"--judge {judge} does not know {', '.join(unknown)}: give one trained on these too")
    return Judges(
        judge=network.to(device),
        recognizer=recognizer,
        second=load_model(SecondRecognizer, second, "--second-recognizer").to(device),
        fitter=fitter,
    )


@torch.no_grad()
def embed_faces(
    embed: Embed, size: int, images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] | ShardedArray, faces: FacePoints
) -> NDArray[np.float32]:
    """Returns unit embeddings (N, D); zero rows where there is no face."""
    result: NDArray[np.float32] | None = None
    for rows, crops in crop_batches(images, faces, size):
        vectors = F.normalize(embed(crops).float(), dim=1).cpu().numpy()
        if result is None:
            result = np.zeros((len(images), vectors.shape[1]), dtype=np.float32)
        result[rows] = vectors
    if result is None:  # nobody: the network says how long its embeddings are
        result = np.zeros((len(images), embed(torch.zeros(1, 3, size, size)).shape[1]), dtype=np.float32)
    return result


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What the judge sees in N pictures: values by attribute, pose (N, 3), landmarks (N, 5, 2), features (N, D)."""

    values: dict[str, list[str]]
    pose: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    features: NDArray[np.float32]


@torch.no_grad()
def look(judge: Judge, images: NDArray[np.uint8] | ShardedArray, *, batch: int = 64) -> Sight:
    """Judges pictures (N, S, S, 3)."""
    values: dict[str, list[str]] = {}
    arrays: dict[str, list[NDArray]] = {"pose": [], "landmarks": [], "features": []}
    vocabularies = judge.config.vocabularies
    for start in range(0, len(images), batch):
        seen = judge(to_unit(np.asarray(images[start : start + batch])).to(judge.device))
        for name, logits in seen.attributes.items():
            words = [vocabularies[name][index] for index in logits.argmax(dim=1).tolist()]
            values.setdefault(name, []).extend(words)
        for name, parts in arrays.items():
            parts.append(getattr(seen, name).cpu().numpy())
    return Sight(values=values, **{name: np.concatenate(parts) for name, parts in arrays.items()})
