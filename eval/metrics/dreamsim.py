"""DreamSim (Fu et al. 2023, arXiv:2306.09344) by its own package, with weights that lie in a folder already."""

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eval.metrics.models import MissingModelError, ModelFacts
from faceclip.errors import CheckpointError
from faceclip.storage.hashes import bytes_hash, file_hash
from faceclip.storage.loading import DAMAGE

FOLDER = "dreamsim-weights"
GET = f"python -c \"from dreamsim import dreamsim; dreamsim(device='cpu', cache_dir='{FOLDER}')\""


class DreamSimModel:
    """Pictures → DreamSim's embeddings (N, D); its distance is 1 − their cosine.

    name: the folder that the package calls cache_dir. Raises MissingModelError without package or weights, since the
    package would download them, and CheckpointError for weights that it cannot load.
    """

    def __init__(self, name: str = FOLDER) -> None:
        if find_spec("dreamsim") is None:
            raise MissingModelError(
                f"dreamsim is not installed; get it by: pip install dreamsim, then its weights: {GET}"
            )
        folder = Path(name).expanduser()
        if not list(folder.glob("*_lora")):
            raise MissingModelError(f"{name} has no weights of DreamSim (folders *_lora); get them by: {GET}")
        try:
            self.model, self.preprocess = importlib.import_module("dreamsim").dreamsim(
                pretrained=True, device="cpu", cache_dir=str(folder)
            )
        except DAMAGE as error:
            raise CheckpointError(f"{folder} cannot be loaded as DreamSim ({error}): get it by {GET}") from error
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.facts = ModelFacts(
            id=name,
            revision="",
            sha256=bytes_hash(*(f"{path.relative_to(folder)} {file_hash(path)}".encode() for path in files)),
            preprocessing="RGB, resized to 224² px by DreamSim's own transform",
        )

    @torch.no_grad()
    def pictures(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Returns embeddings (N, D)."""
        rows = []
        for image in images:
            pixels = self.preprocess(Image.fromarray(np.asarray(image)))
            rows.append(self.model.embed(pixels).reshape(1, -1).float().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)
