"""The networks that measure in a benchmark, by role, and the reasons why a role is empty."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.arguments import load_model
from eval.benchmark.suite import Suite
from eval.judges.networks import Judge, SecondRecognizer
from eval.metrics.dreamsim import FOLDER, DreamSimModel
from eval.metrics.face_entries import ENTRIES as FACES
from eval.metrics.models import ClipModel, DinoModel, InceptionModel, LpipsModel, MissingModelError, ModelFacts
from eval.metrics.picture_entries import CLIP_336, CLIP_B16, CLIP_L14, DINO_S16, DINO_V2
from eval.metrics.registry import METRICS
from eval.metrics.vlm import VlmModel
from faceclip import weights
from faceclip.errors import ConfigError, MissingExtraError
from faceclip.face3d.fitter import FaceFitter
from faceclip.faces.batches import to_unit
from faceclip.storage.hashes import module_hash
from faceclip.towers.image import ImageTower
from faceclip.towers.pretrained import load_tower
from faceclip.towers.text import TextTower, tokenize, used_tokens

Embed = Callable[[Tensor], Tensor]
LOADERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "clip_l14": (ClipModel, CLIP_L14),
    "clip_b16": (ClipModel, CLIP_B16),
    "clip_336": (ClipModel, CLIP_336),
    "dino_s16": (DinoModel, DINO_S16),
    "dino_v2": (DinoModel, DINO_V2),
    "dreamsim": (DreamSimModel, FOLDER),
    "lpips": (LpipsModel, "alexnet-owt-7be5be79.pth"),
    "inception": (InceptionModel, "weights-inception-2015-12-05-6726825d.pth"),
    "vlm": (VlmModel, "Qwen/Qwen2.5-VL-7B-Instruct"),
}
RENDERS_ONLY = ("judge", "fitter", "shipped_clip")
_NOT_FOR_PHOTOS = "knows renders only; name one for photographs under models"


class ShippedClip:
    """The shipped tiny towers as a CLIP model: pictures and texts → embeddings (N, D)."""

    def __init__(self) -> None:
        self.image = load_model(ImageTower, weights.path("tiny/image_tower"), "shipped_clip")
        self.text = load_model(TextTower, weights.path("tiny/text_tower_g"), "shipped_clip")
        sha256 = module_hash(self.image) + module_hash(self.text)
        self.facts = ModelFacts(
            id="tiny/image_tower and tiny/text_tower_g",
            revision="shipped",
            sha256=sha256,
            preprocessing="RGB in [0, 1], whole picture resized by the tower",
        )

    @torch.no_grad()
    def pictures(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        parts = [self.image(to_unit(np.asarray(image)[None])).embedding.float().numpy() for image in images]
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        parts = [self.text(used_tokens(tokenize(text))).embedding.float().numpy() for text in texts]
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """recognizers: name → (embedding of crops, their size). models: role → network. missing: role → why it is not
    there. facts: role or recognizer → what a result file says of it."""

    recognizers: Mapping[str, tuple[Embed, int]]
    models: Mapping[str, Any]
    missing: Mapping[str, str]
    facts: Mapping[str, ModelFacts] = field(default_factory=dict)

    def get(self, role: str) -> Any:
        """Returns the network of a role, None where it is missing."""
        return self.models.get(role)


def load_panel(suite: Suite, device: str = "cpu") -> Panel:
    """Returns the networks that the suite's metrics need.

    A network that is not on this machine is noted with the command that gets it. Raises CheckpointError for
    networks that are damaged or of another kind, ConfigError for an unknown role.
    """
    settings = suite.settings
    known = {*LOADERS, *RENDERS_ONLY}
    unknown = [role for role in settings.models if role not in known]
    if unknown:
        raise ConfigError(f"models: no metric uses {unknown[0]!r}: choose among {', '.join(sorted(known))}")
    roles = {METRICS[name].role for name in settings.metrics or METRICS} - {"", "recognizer", "detector", "masks"}
    models: dict[str, Any] = {}
    missing: dict[str, str] = {}
    facts: dict[str, ModelFacts] = {}
    for role in sorted(roles):
        try:
            model = _load_role(role, settings.models.get(role), suite.references.rendered, device)
        except (MissingModelError, MissingExtraError) as error:
            missing[role] = str(error)
            continue
        if model is None:
            missing[role] = _NOT_FOR_PHOTOS
            continue
        models[role], facts[role] = model
    recognizers: dict[str, tuple[Embed, int]] = {}
    if any(entry.role == "recognizer" for entry in FACES if not settings.metrics or entry.name in settings.metrics):
        for name, place in settings.recognizers.items():
            try:
                recognizers[name], facts[name] = load_recognizer(place, device)
            except MissingExtraError as error:
                missing[name] = str(error)
    return Panel(recognizers=recognizers, models=models, missing=missing, facts=facts)


def load_recognizer(place: str, device: str = "cpu") -> tuple[tuple[Embed, int], ModelFacts]:
    """Loads a recognizer by the name of a tower (see `faceclip.towers.pretrained.load_tower`), or `shipped` for the
    second recognizer of this package. Raises CheckpointError, ConfigError or MissingExtraError."""
    network: Any
    if place == "shipped" or ((Path(place) / "config.json").is_file() and "SecondRecognizer" in _class_of(Path(place))):
        folder = weights.path("tiny/second_recognizer", package="eval") if place == "shipped" else Path(place)
        network = load_model(SecondRecognizer, folder, f"recognizers: {place}").to(device)

        def embed(crops: Tensor) -> Tensor:
            return network(crops.to(device))

    else:
        network = load_tower(place, "face").to(device)

        def embed(crops: Tensor) -> Tensor:
            return network(crops.to(device)).identity

    size = int(network.config.image_size)
    preprocessing = f"RGB in [0, 1], aligned by five points to {size}² px"
    facts = ModelFacts(id=place, revision="", sha256=module_hash(network), preprocessing=preprocessing)
    return (embed, size), facts


def _class_of(folder: Path) -> str:
    return (folder / "config.json").read_text(encoding="utf-8", errors="replace")


def _load_role(role: str, name: str | None, rendered: bool, device: str) -> tuple[Any, ModelFacts] | None:
    """Returns None for a shipped network that is not meant for photographs."""
    if role in LOADERS:
        load, default = LOADERS[role]
        model = load(name or default)
        return model, model.facts
    if not rendered and name is None:
        return None
    if role == "shipped_clip":
        clip = ShippedClip()
        return clip, clip.facts
    kind, place, package = (Judge, "tiny/judge", "eval") if role == "judge" else (FaceFitter, "tiny/fitter", "faceclip")
    folder = Path(name) if name else weights.path(place, package=package)
    network = load_model(kind, folder, f"models.{role}").to(device if role == "judge" else "cpu")
    text = "RGB in [0, 1], whole picture" if role == "judge" else "the fitter's crop by five points"
    facts = ModelFacts(
        id=name or place, revision="" if name else "shipped", sha256=module_hash(network), preprocessing=text
    )
    return network, facts
