"""Search pictures of people by a face, a description, or both.

python examples/search.py GALLERY_DIR --face reference.png --text "a smiling person with red hair"
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import faiss
import torch
from torch import Tensor

from eval.retrieval.spaces import RetrievalModel
from faceclip.data.portrait_reader import cut_square, square_around
from faceclip.encoder import FaceCLIP
from faceclip.errors import ConfigError, EmptyDatasetError, FaceError, NoFaceError
from faceclip.faces import prepare_face
from faceclip.faces.batches import to_unit
from faceclip.settings import run, setting
from faceclip.towers.image import ImageTower

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def read(path: Path, size: int, reach: float) -> tuple[Tensor, Tensor]:
    """The aligned face (1, 3, 448, 448) and the square around it (1, 3, size, size) of a picture, both in [0, 1].

    The square is the one that training showed the image tower; its side is `reach` sides of the aligned face crop.
    Raises the face errors of `faceclip.errors`.
    """
    found = prepare_face(path)
    square = square_around(found.image, found.face.landmarks, reach)
    return to_unit(found.crop[None]), to_unit(cut_square(found.image, square, size)[None])


@torch.no_grad()
def embed_gallery(encoder: FaceCLIP, tower: ImageTower, paths: list[Path], reach: float) -> tuple[list[Path], Tensor]:
    """Embeddings (N, D), unit length, of the pictures that show a face, and these pictures.

    Raises NoFaceError when there is none.
    """
    kept, vectors = [], []
    for path in paths:
        try:
            face, square = read(path, tower.config.image_size, reach)
        except FaceError as error:
            print(f"left out: {error}")
            continue
        kept.append(path)
        vectors.append(encoder.embed_gallery(encoder.face_features(face).identity, tower(square).embedding))
    if not kept:
        raise NoFaceError("no picture of the gallery shows a face that was found: give larger or other pictures")
    return kept, torch.cat(vectors)


@dataclass(kw_only=True)
class SearchSettings:
    """Where to search, and for what."""

    gallery: Path = setting(help="folder of pictures, one person on each", positional=True)
    face: Path | None = setting(None, "picture of the person to look for")
    text: str | None = setting(None, "what the picture shows")
    model: Path = setting(Path("tiny"), "export of train_encoder, a saved pipeline, or tiny, the one that ships")
    reach: float = setting(1.7, "side of the image tower's square in sides of the aligned face, as in training")
    count: int = setting(5, "pictures to name")

    def __post_init__(self) -> None:
        if self.face is None and self.text is None:
            raise ConfigError("give --face, --text, or both")
        if self.count < 1:
            raise ConfigError(f"--count must be at least 1, got {self.count}")


def search(arguments: SearchSettings) -> None:
    """Prints the pictures of the gallery that fit best, with their scores."""
    if not arguments.gallery.is_dir():
        raise ConfigError(f"gallery: no folder {arguments.gallery}; name one that holds pictures of people")
    model = RetrievalModel.from_pretrained(arguments.model)
    encoder, tower = model.encoder, model.image_tower
    paths = sorted(path for path in arguments.gallery.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise EmptyDatasetError(f"{arguments.gallery} holds no picture ({', '.join(sorted(SUFFIXES))})")
    kept, gallery = embed_gallery(encoder, tower, paths, arguments.reach)
    with torch.no_grad():
        faces = read(arguments.face, tower.config.image_size, arguments.reach)[0] if arguments.face else None
        query = encoder.embed([arguments.text or ""], faces).joint
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.numpy())
    scores, rows = index.search(query.numpy(), min(arguments.count, len(kept)))
    for score, row in zip(scores[0], rows[0], strict=True):
        print(f"{score:.3f}  {kept[row]}")


if __name__ == "__main__":
    if status := run(search, SearchSettings, flags=True):
        sys.exit(status)
