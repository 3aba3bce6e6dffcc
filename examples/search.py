"""Search pictures of people by a face, a description, or both.

python examples/search.py GALLERY_DIR --face reference.png --text "a smiling person with red hair"
"""

import argparse
from pathlib import Path

import faiss
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from faceclip.encoder import FaceCLIP
from faceclip.errors import EmptyDatasetError, FaceClipError, FaceError, NoFaceError
from faceclip.faces import load_image
from faceclip.published.faces import published_faces
from faceclip.towers.image import ImageTower

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def read(path: Path, size: int) -> Tensor:
    """A picture (3, size, size) in [0, 1]."""
    return pil_to_tensor(Image.fromarray(load_image(path)).resize((size, size))).float() / 255


@torch.no_grad()
def embed_gallery(encoder: FaceCLIP, tower: ImageTower, paths: list[Path]) -> tuple[list[Path], Tensor]:
    """Embeddings (N, D), unit length, of the pictures that show a face, and these pictures.

    Raises NoFaceError when there is none.
    """
    kept, vectors = [], []
    for path in paths:
        try:
            face = encoder.face_features(published_faces([path]))
        except FaceError as error:
            print(f"left out: {error}")
            continue
        image = tower(read(path, tower.config.image_size)[None]).embedding
        kept.append(path)
        vectors.append(encoder.embed_gallery(face.identity, image))
    if not kept:
        raise NoFaceError("no picture of the gallery shows a face that was found: give larger or other pictures")
    return kept, torch.cat(vectors)


def search(arguments: argparse.Namespace) -> None:
    """Prints the pictures of the gallery that fit best, with their scores."""
    encoder = FaceCLIP.from_pretrained(arguments.model).eval()
    tower = ImageTower.from_pretrained(f"{arguments.model}/image_tower").eval()
    paths = sorted(path for path in arguments.gallery.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise EmptyDatasetError(f"{arguments.gallery} holds no picture ({', '.join(sorted(SUFFIXES))})")
    kept, gallery = embed_gallery(encoder, tower, paths)
    with torch.no_grad():
        faces = published_faces([arguments.face]) if arguments.face else None
        query = encoder.embed([arguments.text or ""], faces).joint
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery.numpy())
    scores, rows = index.search(query.numpy(), min(arguments.count, len(kept)))
    for score, row in zip(scores[0], rows[0], strict=True):
        print(f"{score:.3f}  {kept[row]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gallery", type=Path, help="folder of pictures, one person on each")
    parser.add_argument("--face", type=Path, help="picture of the person to look for")
    parser.add_argument("--text", help="what the picture shows")
    parser.add_argument("--model", default="runs/demo/encoder/export", help="export of train_encoder")
    parser.add_argument("--count", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.face is None and arguments.text is None:
        parser.error("give --face, --text, or both")
    if not Path(arguments.model).is_dir():
        parser.error(f"--model: no folder {arguments.model}; make it by `make demo` or `python -m train_encoder`")
    if not arguments.gallery.is_dir():
        parser.error(f"gallery: no folder {arguments.gallery}; name one that holds pictures of people")
    try:
        search(arguments)
    except FaceClipError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
