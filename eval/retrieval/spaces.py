"""Embeddings of portraits and queries in every space that the evaluation compares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from eval.arguments import load_model
from eval.retrieval.search import Embeddings, all_present, concatenate
from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError
from faceclip.faces.batches import FacePoints, crop_batches, to_unit
from faceclip.retrieval.queries import Queries
from faceclip.storage.shards import ShardedArray
from faceclip.towers.face import FaceFeatures
from faceclip.towers.image import ImageTower
from faceclip.towers.text import tokenize, used_tokens
from makeup_plugin.saving.shipped import is_shipped, shipped_towers

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class RetrievalModel:
    """A trained joint encoder with its heads, and the image tower of its gallery side."""

    encoder: FaceCLIP
    image_tower: ImageTower

    @classmethod
    def from_pretrained(cls, model: str | Path, device: torch.device | str = "cpu") -> "RetrievalModel":
        """Loads an export of stage 1, the encoders of a saved pipeline in a folder, or those of the shipped pipeline by
        its name; on a device. What the functions below compute comes back to the CPU.

        Raises CheckpointError when parts are missing or damaged.
        """
        if is_shipped(model):
            parts = shipped_towers(str(model), given={"face_fitter": None})
            encoder, image_tower = parts["joint_encoder"], parts["image_encoder"]
        else:
            folder = Path(model)
            pipeline = (folder / "model_index.json").is_file()
            places = ("joint_encoder", "image_encoder") if pipeline else ("", "image_tower")
            for part in (folder / place for place in places):
                if not (part / "config.json").is_file():
                    raise CheckpointError(
                        f"{part} has no config.json: give the export folder of `python -m train_encoder`, a saved "
                        "pipeline, or tiny"
                    )
            encoder = load_model(FaceCLIP, folder / places[0], "--model")
            image_tower = load_model(ImageTower, folder / places[1], "--model")
        if encoder.heads is None:
            raise CheckpointError(f"{model} has no retrieval heads: train stage 1 with joint heads")
        return cls(encoder=encoder.to(device), image_tower=image_tower.to(device))

    @property
    def device(self) -> torch.device:
        return self.encoder.device


@dataclass(frozen=True, kw_only=True)
class Portraits:
    """N portraits in the frozen spaces. Rows without a face hold zeros and are marked in `found`."""

    tokens: torch.Tensor  # (N, P, W) patch tokens of the face encoder
    identity: torch.Tensor  # (N, E)
    image: torch.Tensor  # (N, C)
    found: NDArray[np.bool_]

    @property
    def face_space(self) -> Embeddings:
        return Embeddings(vectors=self.identity.numpy(), present=self.found)

    @property
    def image_space(self) -> Embeddings:
        return all_present(self.image.numpy())

    def features(self, rows: Sequence[int] | NDArray[np.integer]) -> FaceFeatures:
        return FaceFeatures(tokens=self.tokens[rows], identity=self.identity[rows])


@torch.no_grad()
def encode_portraits(
    model: RetrievalModel, images: NDArray[np.uint8] | ShardedArray, faces: FacePoints, *, batch: int = 64
) -> Portraits:
    """Returns face and image embeddings of portraits (N, S, S, 3); zeros for the face where none was found."""
    encoder = model.encoder.face_encoder
    size, config = encoder.config.image_size, encoder.config
    tokens = torch.zeros(len(images), encoder.grid**2, config.width, dtype=torch.float16)
    identity = torch.zeros(len(images), config.embedding_dim)
    for rows, crops in crop_batches(images, faces, size, batch=batch):
        features = model.encoder.face_features(crops.to(model.device))
        tokens[rows], identity[rows] = features.tokens.half().cpu(), features.identity.float().cpu()
    image = [
        model.image_tower(to_unit(np.asarray(images[start : start + batch])).to(model.device)).embedding.float().cpu()
        for start in range(0, len(images), batch)
    ]
    return Portraits(tokens=tokens, identity=identity, image=torch.cat(image), found=faces.found)


@torch.no_grad()
def encode_text(model: RetrievalModel, texts: Sequence[str], *, batch: int = 128) -> Embeddings:
    """Returns the CLIP text embeddings (Q, C), in the space of the image tower; the empty text has none."""
    unique, place = np.unique(np.array(texts, dtype=object).astype(str), return_inverse=True)
    parts = []
    for start in range(0, len(unique), batch):
        tokens = used_tokens(tokenize(unique[start : start + batch].tolist()))
        parts.append(model.encoder.g.text(tokens.to(model.device)).embedding.float().cpu())
    vectors = torch.cat(parts).numpy()[place]
    return Embeddings(vectors=vectors, present=np.array([bool(text.strip()) for text in texts]))


@torch.no_grad()
def joint_gallery(model: RetrievalModel, portraits: Portraits) -> Embeddings:
    """Returns the joint embedding of portraits; a portrait without a detected face cannot be found."""
    identity, image = portraits.identity.to(model.device), portraits.image.to(model.device)
    vectors = model.encoder.embed_gallery(identity, image).float().cpu().numpy()
    return Embeddings(vectors=vectors, present=portraits.found)


@torch.no_grad()
def joint_queries(
    model: RetrievalModel, portraits: Portraits, queries: Queries, *, batch: int = 64, progress: Progress | None = None
) -> Embeddings:
    """Returns the joint embedding of queries; an image query is embedded as a gallery picture is."""
    if queries.kind == "image":
        return joint_gallery(model, portraits).take(queries.face)
    parts = []
    for start in range(0, len(queries), batch):
        rows = queries.face[start : start + batch]
        texts = list(queries.text[start : start + batch])
        if queries.kind == "text":
            parts.append(model.encoder.embed(texts).joint.float().cpu())
        else:
            features = portraits.features(rows)
            features = FaceFeatures(
                tokens=features.tokens.to(model.device, torch.float32), identity=features.identity.to(model.device)
            )
            parts.append(model.encoder.embed(texts, face_features=features).joint.float().cpu())
        if progress is not None:
            progress(len(rows))
    present = np.ones(len(queries), dtype=bool)
    if queries.kind != "text":
        present = portraits.found[queries.face]
    return Embeddings(vectors=torch.cat(parts).numpy(), present=present)


def baseline_spaces(
    model: RetrievalModel, portraits: Portraits, queries: Queries, *, weight: float | None, seed: int = 0
) -> dict[str, tuple[Embeddings, Embeddings]]:
    """Returns name → (gallery, queries) of every space the joint one is compared with.

    `weight` of the face in the tuned concatenation, found on the validation split; None leaves that row out.
    """
    face, image = portraits.face_space, portraits.image_space
    generator = np.random.default_rng(seed)
    count = len(portraits.identity)
    noise = generator.standard_normal((count + len(queries), 64)).astype(np.float32)
    spaces: dict[str, tuple[Embeddings, Embeddings]] = {}
    if queries.kind != "text":
        spaces["face alone"] = (face, face.take(queries.face))
    if queries.kind in ("face", "face_frontal", "image"):
        spaces["image alone"] = (image, image.take(queries.face))
    if queries.kind == "image":
        both = concatenate(face, image)
        spaces["concatenation [face ; image]"] = (both, both.take(queries.face))
    if queries.kind in ("text", "face+text"):
        text = encode_text(model, queries.text)
        spaces["text alone"] = (image, text)
    if queries.kind == "face+text":
        spaces["image alone"] = (image, image.take(queries.face))
        asked = face.take(queries.face)
        spaces["concatenation [face ; text]"] = (concatenate(face, image), concatenate(asked, text))
        if weight is not None:
            name = f"concatenation, face weighed {weight:.2f}"
            spaces[name] = (
                concatenate(face, image, weight=weight),
                concatenate(asked, text, weight=weight),
            )
    spaces["random"] = (all_present(noise[:count]), all_present(noise[count:]))
    return spaces
