"""Builds an HTML page that needs no other file. Every function escapes the texts that it is given."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceclip.errors import FaceError
from faceclip.faces.images import load_image

THUMBNAIL = 112  # px of the longer side
_STYLE = """
body { margin: 0 auto; max-width: 1080px; padding: 32px 24px 80px; color: #1d232b; background: #fbfbfa;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 30px; } h2 { margin-top: 44px; border-top: 1px solid #dfe3e8; padding-top: 14px; }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: right; border-bottom: 1px solid #e6e9ed; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; } .row { display: flex; flex-wrap: wrap; gap: 6px; margin: 4px 0 14px; }
.row figure { margin: 0; text-align: center; font-size: 12px; color: #5c6773; }
.row img { display: block; border-radius: 4px; } .note { color: #5c6773; font-size: 14px; }
"""


def document(title: str, blocks: Sequence[str]) -> str:
    """Returns the whole page: the title, then the blocks of HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{''.join(blocks)}</body></html>\n"
    )


def heading(title: str, level: int = 2) -> str:
    """Returns a heading that begins a section (level 2) or a part of one (3)."""
    return f"<h{level}>{html.escape(title)}</h{level}>"


def text(paragraph: str) -> str:
    """Returns a paragraph."""
    return f"<p>{html.escape(paragraph)}</p>"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a table. Cells are converted by `str`."""
    head = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def histogram(counts: NDArray[np.int64], edges: NDArray[np.float64], bound: float) -> str:
    """Returns an SVG histogram with a line at the bound.

    counts (N,) and edges (N + 1,) are as `numpy.histogram` returns them. The bars show square roots of the counts, so
    that rare values stay visible.
    """
    width, height, count = 640, 90, len(counts)
    heights = np.sqrt(counts / max(int(counts.max()), 1)) * height
    bars = "".join(
        f'<rect x="{index * width / count:.1f}" y="{height - value:.1f}" width="{width / count - 1:.1f}" '
        f'height="{value:.1f}" fill="#22577a"><title>{edges[index]:.4g} to {edges[index + 1]:.4g}: '
        f"{counts[index]:,}</title></rect>"
        for index, value in enumerate(heights)
    )
    line = (bound - edges[0]) / (edges[-1] - edges[0]) * width
    return (
        f'<svg viewBox="0 0 {width} {height + 18}" width="{width}" role="img">{bars}'
        f'<line x1="{line:.1f}" x2="{line:.1f}" y1="0" y2="{height}" stroke="#d1495b" stroke-width="2"/>'
        f'<g font-size="11" fill="#5c6773"><text x="0" y="{height + 14}">{edges[0]:.4g}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end">{edges[-1]:.4g}</text></g></svg>'
        '<p class="note">Heights are roots of counts; values beyond the ends are in the last bars.</p>'
    )


def pictures(title: str, cells: Sequence[tuple[bytes | None, str]]) -> str:
    """Returns a row of small pictures with labels below. Pictures that are None or cannot be read are left out."""
    shown = "".join(_cell(data, label) for data, label in cells if data is not None)
    return f'<p class="note">{html.escape(title)}</p><div class="row">{shown}</div>'


def _cell(data: bytes, label: str) -> str:
    try:
        small = Image.fromarray(load_image(data))
    except FaceError:  # the report counts it among the unmeasured pictures
        return ""
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(label)
    source = f"data:image/jpeg;base64,{encoded}"
    return f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption></figure>'
