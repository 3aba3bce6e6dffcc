"""Likeness of the pictures that a pipeline draws from damaged references."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from eval.judges.panel import embed_faces
from eval.robustness.measure import Recognizers
from faceclip.errors import FaceError
from faceclip.faces.batches import detected_faces
from faceclip.statistics import Estimate, identity_bootstrap

PROMPT = "a portrait of a person"


def draw_from(
    pipeline: Any, references: Sequence[NDArray[np.uint8]], *, steps: int | None, seed: int
) -> list[NDArray[np.uint8] | None]:
    """Draws a picture (S, S, 3) of each reference by one prompt and a seed per person; None where the pipeline finds no
    face in the reference. The pipeline looks for the face itself, as it does for a user."""
    drawn: list[NDArray[np.uint8] | None] = []
    for number, reference in enumerate(track(list(references), "pictures", transient=True)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        try:
            output = pipeline(PROMPT, image=reference, num_inference_steps=steps, generator=generator)
        except FaceError:
            drawn.append(None)
            continue
        drawn.append(np.asarray(output.images[0].convert("RGB")))
    return drawn


def likeness(
    drawn: Sequence[NDArray[np.uint8] | None], clean: dict[str, NDArray[np.float32]], recognizers: Recognizers
) -> dict[str, Estimate]:
    """Returns recognizer → mean cosine of pictures and undamaged references; 0 without a picture or a face in it."""
    rows = [row for row, picture in enumerate(drawn) if picture is not None]
    pictures = [picture for picture in drawn if picture is not None]
    faces = detected_faces(pictures, label="faces of the pictures") if pictures else None
    found: dict[str, Estimate] = {}
    for name, (embed, size) in recognizers.items():
        values = np.zeros(len(drawn))
        if faces is not None:
            values[rows] = (embed_faces(embed, size, pictures, faces) * clean[name][rows]).sum(axis=1)
        found[name] = identity_bootstrap(values, np.arange(len(drawn)))
    return found
