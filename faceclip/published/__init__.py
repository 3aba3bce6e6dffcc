"""Published FaceCLIP checkpoint files in and out (`python -m faceclip.published convert | export | convert-unet`)."""

from faceclip.published.checkpoint import convert, export, load_faceclip
from faceclip.published.unet import load_unet

__all__ = ["convert", "export", "load_faceclip", "load_unet"]
