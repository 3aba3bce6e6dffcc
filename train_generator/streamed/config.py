"""How stage 2 takes photographs that lie in the data as they are."""

from dataclasses import dataclass
from typing import Literal

from faceclip.data.frames import Framing
from faceclip.data.mapping import MAX_REACH
from faceclip.errors import ConfigError
from faceclip.settings import setting


@dataclass(kw_only=True)
class PhotosConfig:
    """What is cut from a photograph, and who reads its face. Data of this project's own layout are cut already.

    None is compared when a run resumes: the hash of the data tells frames and maps apart.

    Raises ConfigError for a reach or a least side out of range.
    """

    frame: Literal["square", "whole"] = setting(
        "square", "a square around the face, or the whole picture in the nearest of several shapes", resume="free"
    )
    reach: float = setting(1.7, "side of a square in sides of the aligned face crop", resume="free")
    min_side: int = setting(
        128, "px of a frame's shorter side in its photo at least; a smaller one is an unusable row", resume="free"
    )
    fitter: str = setting(
        "tiny/fitter", "mesh (extra photos), or a `FaceFitter`: a folder or shipped name", resume="free", path=True
    )

    def __post_init__(self) -> None:
        if not 1 < self.reach <= MAX_REACH:
            raise ConfigError(f"photos.reach: more than 1, the crop, to {MAX_REACH} is expected, got {self.reach}")
        if self.min_side < 1:
            raise ConfigError(f"photos.min_side: must be at least 1, got {self.min_side}")

    def framing(self, size: int, step: int) -> Framing:
        """Frames for generated pictures of `size` px, whose sides are multiples of `step`."""
        # Buckets of a sixteenth of the side as SDXL's (64 px at 1,024), unless the networks need coarser ones.
        step = step * max(1, size // 16 // step)
        return Framing(size=size, step=step, reach=self.reach, whole=self.frame == "whole", min_side=self.min_side)
