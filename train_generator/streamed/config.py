"""Settings of stage 2 for photographs that are read as they are in the data."""

from dataclasses import dataclass
from typing import Literal

from faceclip.data.frames import Framing
from faceclip.data.mapping import MAX_REACH
from faceclip.settings import check_bounds, setting


@dataclass(kw_only=True)
class PhotosConfig:
    """What is cut from a photograph, and which network fits its face. Data in this project's own layout are cut
    already.

    These settings are not compared when a run resumes, because the hash of the data covers frames and maps.

    Raises ConfigError if `reach` or `min_side` is out of range.
    """

    frame: Literal["square", "whole"] = setting(
        "square", "a square around the face, or the whole picture in the nearest of several shapes", resume="free"
    )
    reach: float = setting(
        1.7, "side of a square divided by that of the aligned face crop", resume="free", above=1, most=MAX_REACH
    )
    min_side: int = setting(
        128,
        "smallest shorter side of a frame in px of its photo; smaller ones are unusable rows",
        resume="free",
        least=1,
    )
    fitter: str = setting(
        "tiny/fitter", "mesh (extra photos), or a `FaceFitter`: a folder or shipped name", resume="free", path=True
    )

    def __post_init__(self) -> None:
        check_bounds(self, "photos.")

    def framing(self, size: int, step: int) -> Framing:
        """Returns the framing for generated pictures of `size` px, whose sides are multiples of `step`."""
        # Sides are multiples of a sixteenth of the size, as in SDXL (64 px at 1,024), or of the networks' coarser step.
        step = step * max(1, size // 16 // step)
        return Framing(size=size, step=step, reach=self.reach, whole=self.frame == "whole", min_side=self.min_side)
