"""What stage 2 reads of photographs in training: everything except their pixels, which the latents replace."""

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
    """N frames of one split, which may have several shapes.

    sizes (N, 6): see `faceclip.data.frames.Frame`. landmarks_5 (N, 5, 2): px of the frame. shading: (h, w, 3) uint8 of
    each frame, decoded on access.
    """

    landmarks_5: NDArray[np.float32]

    def __init__(self, folder: ShardFolder, records: Mapping[str, ShardedArray], rows: NDArray[np.int64]) -> None:
        super().__init__(folder, records, rows)
        shards = [folder.read(number) for number in range(len(folder))]
        self.sizes: NDArray[np.float32] = records["sizes"][:][rows]
        self.landmarks_5 = records["landmarks_5"][:][rows]
        self.shading = ShadingMaps(RaggedRows(shards, "shading", rows))
        self.vocabularies: dict[str, tuple[str, ...]] = {}
        self.images = None  # pixels are not kept
        self._look = str(folder.about["look"])

    def shape(self, row: int) -> tuple[int, int]:
        """Returns height and width of a frame in px."""
        return int(self.sizes[row, 4]), int(self.sizes[row, 5])

    @property
    def groups(self) -> NDArray[np.int64] | None:
        """Numbers (N,) that are equal for frames of the same shape, which share batches; None if all have the same."""
        _, groups = np.unique(self.sizes[:, 4:], axis=0, return_inverse=True)
        groups = groups.reshape(-1)
        return groups.astype(np.int64) if groups.any() else None

    @property
    def content_hash(self) -> str:
        """Hash of persons, pictures, captions, frames and maps."""
        return bytes_hash(super().content_hash.encode(), self._look.encode(), np.ascontiguousarray(self.sizes))


@dataclass(frozen=True)
class ShadingMaps:
    """Maps (h, w, 3) uint8, decoded on access. Raises DataError for a damaged one."""

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
    """Latents (C, h, w) float32 of frames. sizes (N, 2): of the frames in px. factor: px per latent."""

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
        """(N, C, h, w), with the height and width of the first row."""
        return len(self), self.channels, *(self.sizes[0] // self.factor).tolist()
