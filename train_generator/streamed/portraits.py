"""What stage 2 reads of photographs in training: everything but their pixels, which the latents replace."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceclip.data.recorded import RecordedPortraits
from faceclip.errors import DataError
from faceclip.storage.hashes import bytes_hash
from faceclip.storage.ragged import RaggedRows
from faceclip.storage.shards import ShardedArray, ShardFolder


class StreamedPortraits(RecordedPortraits):
    """N frames of one split, of one or several shapes.

    sizes: (N, 6) of `faceclip.data.frames.Frame`. landmarks_5: (N, 5, 2) px of the frame. shading: (h, w, 3) uint8 of
    each, decoded when it is read.
    """

    landmarks_5: NDArray[np.float32]

    def __init__(self, folder: ShardFolder, records: Mapping[str, ShardedArray], rows: NDArray[np.int64]) -> None:
        super().__init__(folder, records, rows)
        shards = [folder.read(number) for number in range(len(folder))]
        self.sizes: NDArray[np.float32] = records["sizes"][:][rows]
        self.landmarks_5 = records["landmarks_5"][:][rows]
        self.shading = ShadingMaps(RaggedRows(shards, "shading", rows))
        self.vocabularies: dict[str, tuple[str, ...]] = {}
        self.images = None  # they stay where they are
        self._look = str(folder.about["look"])

    def shape(self, row: int) -> tuple[int, int]:
        """Height and width of a frame in px."""
        return int(self.sizes[row, 4]), int(self.sizes[row, 5])

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """(N,) equal for frames of one shape, which share batches; None where all have one."""
        _, groups = np.unique(self.sizes[:, 4:], axis=0, return_inverse=True)
        groups = groups.reshape(-1)
        return groups.astype(np.int64) if groups.any() else None

    @property
    def content_hash(self) -> str:
        """Hash of who is shown, in which picture, words, frame and map."""
        return bytes_hash(super().content_hash.encode(), self._look.encode(), np.ascontiguousarray(self.sizes))


@dataclass(frozen=True)
class ShadingMaps:
    """Maps (h, w, 3) uint8, decoded when they are read."""

    stored: RaggedRows

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        try:
            with Image.open(io.BytesIO(self.stored[index].tobytes()), formats=("PNG",)) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise DataError(
                f"the shading map of row {index} in the cache is damaged ({error}): delete the cache"
            ) from error


@dataclass(frozen=True)
class Latents:
    """Latents (C, h, w) float32 of frames. sizes: px (N, 2) of these; factor: px of a latent's side."""

    stored: RaggedRows
    sizes: NDArray[np.int64]
    channels: int
    factor: int

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        height, width = (self.sizes[index] // self.factor).tolist()
        return self.stored[index].reshape(self.channels, height, width)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, h, w), of the first row where they differ."""
        return len(self), self.channels, *(self.sizes[0] // self.factor).tolist()
