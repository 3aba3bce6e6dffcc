"""What both tabs of the page share: inputs of photos, messages, and pictures large enough to see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from PIL import Image

from faceclip.errors import FaceClipError

PICTURE_FILES = ["png", "jpg", "jpeg", "webp"]
SHOWN_SIDE = 256  # px
Photos = list[tuple[str, str | None]] | None


@contextmanager
def shown_errors() -> Iterator[None]:
    """Errors that a visitor can mend are shown on the page; others are not told to the browser."""
    try:
        yield
    except FaceClipError as error:
        raise gr.Error(str(error), title="This does not work", print_exception=False) from error


def photo_input(label: str, name: str, *, visible: bool = True) -> gr.Gallery:
    """An upload of photos whose handler gets their paths."""
    # A gallery hands over the file as it was sent, so that our own reader limits its pixels before it is decoded.
    return gr.Gallery(
        label=label,
        type="filepath",
        file_types=[f".{ending}" for ending in PICTURE_FILES],
        sources=["upload"],
        columns=3,
        height=260,
        object_fit="contain",
        fit_columns=False,
        interactive=True,
        visible=visible,
        elem_id=name,
    )


def paths_of(photos: Photos) -> list[Path]:
    """The files that a visitor has sent."""
    return [Path(file) for file, _ in photos or []]


def enlarged(picture: Image.Image | None) -> Image.Image | None:
    """The shading map of a small base, so large that the eye sees it."""
    if picture is None or min(picture.size) >= SHOWN_SIDE:
        return picture
    scale = SHOWN_SIDE / min(picture.size)
    return picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
