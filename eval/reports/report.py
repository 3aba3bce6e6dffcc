"""Self-contained HTML reports: prose, tables with intervals, plots and picture grids in one file."""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from faceclip.statistics import Estimate
from faceclip.storage import files

PALETTE = ("#22577a", "#d1495b", "#38a3a5", "#edae49", "#6b705c", "#8d5a97")
STROKES = ("-", "--", ":")

_STYLE = """
:root { color-scheme: light; --ink: #1d232b; --muted: #5c6773; --line: #dfe3e8; --accent: #22577a; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fbfbfa;
  font: 16px/1.55 "Source Sans 3", "Segoe UI", system-ui, -apple-system, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 48px 28px 96px; }
h1 { font-size: 34px; line-height: 1.15; margin: 0 0 6px; letter-spacing: -.015em; }
h2 { font-size: 23px; margin: 52px 0 10px; padding-top: 18px; border-top: 1px solid var(--line); }
h3 { font-size: 17px; margin: 28px 0 6px; }
p { max-width: 74ch; margin: 8px 0 12px; }
.subtitle, figcaption, .note, caption { color: var(--muted); font-size: 14.5px; }
nav { margin: 22px 0 0; font-size: 15px; }
nav a { margin-right: 18px; color: var(--accent); text-decoration: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 12px 0 18px; font-size: 15px;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 6px; }
th, td { padding: 6px 14px 6px 0; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--muted); font-size: 13.5px; }
th:first-child, td:first-child { text-align: left; padding-right: 26px; }
tr.best td { font-weight: 650; }
.interval { color: var(--muted); font-size: 13px; padding-left: 5px; }
figure { margin: 18px 0 26px; } figure > img { max-width: 100%; height: auto; }
.grid { border-collapse: separate; border-spacing: 5px; margin: 10px 0; width: auto; }
.grid td, .grid th { border: 0; padding: 0; text-align: center; vertical-align: middle; }
.grid th { font-weight: 500; font-size: 13px; white-space: normal; max-width: 150px; padding: 0 6px 3px; }
.grid tbody th { text-align: right; } .grid img { display: block; border-radius: 4px; background: #e9ecef; }
.grid .empty { color: var(--muted); font-size: 12px; }
code, pre { font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: #f0f1ef; }
code { padding: 1px 5px; border-radius: 4px; }
pre { padding: 12px 16px; overflow-x: auto; border-radius: 6px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 22px; margin: 12px 0;
  font-size: 14.5px; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--accent); }
.warning { border-left: 3px solid #edae49; padding: 2px 0 2px 14px; }
"""


@dataclass(frozen=True)
class Best:
    """A cell that stands in bold."""

    cell: "str | int | float | Estimate"


Cell = str | int | float | Estimate | Best | None


class Report:
    """Collects blocks and writes them as one HTML file that needs nothing else. All text is escaped."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[str] = []
        self._sections: dict[int, str] = {}  # position among the blocks → title

    def section(self, title: str) -> None:
        """Begins a section; the page's navigation lists it."""
        self._sections[len(self._blocks)] = title
        self._blocks.append("")

    def subsection(self, title: str) -> None:
        self._blocks.append(f"<h3>{html.escape(title)}</h3>")

    def text(self, paragraph: str, *, warning: bool = False) -> None:
        """Adds a paragraph; `warning` marks what a reader must know before believing the figures."""
        kind = ' class="warning"' if warning else ""
        self._blocks.append(f"<p{kind}>{html.escape(paragraph)}</p>")

    def code(self, text: str) -> None:
        self._blocks.append(f"<pre>{html.escape(text)}</pre>")

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        *,
        caption: str = "",
        emphasized: Sequence[int] = (),
    ) -> None:
        """Adds a table. Estimates are shown with their 95 % interval; rows whose index is in `emphasized` are bold."""
        for row in rows:
            if len(row) != len(headers):
                raise ValueError(f"a row of {len(row)} cells under {len(headers)} headers: {row}")
        head = "".join(f"<th>{html.escape(header)}</th>" for header in headers)
        body = "".join(
            f"<tr{' class=best' if index in emphasized else ''}>"
            + "".join(f"<td>{format_cell(cell)}</td>" for cell in row)
            + "</tr>"
            for index, row in enumerate(rows)
        )
        title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        self._blocks.append(
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def definitions(self, terms: Sequence[tuple[str, str]], *, title: str = "") -> None:
        """Adds terms and what is said of each, in whole sentences; with a title they are folded away under it."""
        rows = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>" for term, text in terms)
        block = f"<dl>{rows}</dl>"
        self._blocks.append(f"<details><summary>{html.escape(title)}</summary>{block}</details>" if title else block)

    def figure(self, figure: Figure, caption: str = "") -> None:
        """Adds a matplotlib figure made with `Figure(...)`, not pyplot: nothing global, nothing to close."""
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight", facecolor="#fbfbfa")
        self._blocks.append(
            f'<figure><img alt="{html.escape(caption, quote=True)}" '
            f'src="{_data_uri(buffer.getvalue(), "image/png")}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def image_grid(
        self,
        images: Sequence[Sequence[NDArray[np.uint8] | None]],
        *,
        row_labels: Sequence[str] = (),
        column_labels: Sequence[str] = (),
        pixels: int = 112,
        caption: str = "",
    ) -> None:
        """Adds rows of uint8 RGB pictures shown `pixels` wide; None is an empty cell."""
        head = ""
        if column_labels:
            cells = "".join(f"<th>{html.escape(label)}</th>" for label in column_labels)
            head = f"<thead><tr>{'<th></th>' if row_labels else ''}{cells}</tr></thead>"
        body = []
        for index, row in enumerate(images):
            label = f"<th>{html.escape(row_labels[index])}</th>" if row_labels else ""
            body.append(f"<tr>{label}{''.join(_picture(image, pixels) for image in row)}</tr>")
        self._blocks.append(
            f'<figure><div class="scroll"><table class="grid">{head}<tbody>{"".join(body)}</tbody></table>'
            "</div>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def block(self, markup: str) -> None:
        """Adds markup that is HTML already; its maker has escaped the texts in it."""
        self._blocks.append(markup)

    def save_parts(self, path: Path) -> None:
        """Keeps the content as JSON, so that another report can take it over with `append_parts`."""
        write_json(path, {"blocks": self._blocks, "sections": list(self._sections.items())})

    def append_parts(self, path: Path) -> None:
        """Takes over everything that another report kept."""
        parts = json.loads(path.read_text(encoding="utf-8"))
        start = len(self._blocks)
        self._sections |= {start + position: title for position, title in parts["sections"]}
        self._blocks += parts["blocks"]

    def to_html(self) -> str:
        """Returns the whole page."""
        links = "".join(f'<a href="#s{i}">{html.escape(title)}</a>' for i, title in self._sections.items())
        body = "".join(
            f'<h2 id="s{i}">{html.escape(self._sections[i])}</h2>' if i in self._sections else block
            for i, block in enumerate(self._blocks)
        )
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head><body><main>"
            f"<h1>{html.escape(self.title)}</h1>"
            f'<p class="subtitle">{html.escape(self.subtitle)} {made}</p><nav>{links}</nav>'
            f"{body}</main></body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Writes the report; a reader never sees half of it."""
        files.write_text(path, self.to_html())
        return path


def write_json(path: Path, content: object) -> None:
    """Writes JSON by `files.write_json`: dataclasses by their fields, and null for NaN and infinities, which JSON does
    not have."""
    files.write_json(path, _plain(content), sort_keys=False)


def show_figures(figures: Mapping[str, Estimate], path: Path | None) -> None:
    """Prints figures, one a line, and writes them to a file if one is named."""
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    if path is not None:
        write_json(path, figures)


def _plain(content: object) -> object:
    if is_dataclass(content):
        content = vars(content)
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def format_cell(cell: Cell) -> str:
    """Returns one table cell as HTML: estimates with interval, floats to three places, None as a dash."""
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return "–"
    if isinstance(cell, Best):
        return f"<strong>{format_cell(cell.cell)}</strong>"
    if isinstance(cell, Estimate):
        if np.isnan(cell.value):
            return "–"
        digits = 3 if max(abs(cell.low), abs(cell.high)) < 10 else 1
        interval = f"{cell.low:.{digits}f} … {cell.high:.{digits}f}"
        return f'{cell.value:.{digits}f}<span class="interval">{interval}</span>'
    if isinstance(cell, float):
        return f"{cell:.3f}"
    if isinstance(cell, int):
        return f"{cell:,}"
    return html.escape(cell)


def interval_bars(
    groups: Sequence[str],
    series: Sequence[tuple[str, Sequence[Estimate | None]]],
    *,
    label: str,
    size: tuple[float, float] = (8.0, 3.4),
) -> Figure:
    """Draws grouped bars with 95 % intervals: one group per name, one bar per series."""
    figure = Figure(figsize=size)
    axes = figure.subplots()
    width = 0.8 / max(len(series), 1)
    for number, (name, estimates) in enumerate(series):
        label_of_series: str | None = name  # given to the first bar that is drawn
        for position, estimate in enumerate(estimates):
            if estimate is None or np.isnan(estimate.value):
                continue
            x = position + (number - (len(series) - 1) / 2) * width
            color = PALETTE[number % len(PALETTE)]
            axes.bar(x, estimate.value, width * 0.92, color=color, label=label_of_series)
            label_of_series = None
            spread = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            # A percentile interval of few people may leave its own mean outside.
            axes.errorbar(x, estimate.value, np.maximum(spread, 0), color="#1d232b", capsize=2, lw=1)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(label)
    clean_axes(axes)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9, ncols=min(len(series), 4), loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return figure


def line_plot(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    logarithmic_x: bool = False,
    logarithmic_y: bool = False,
    size: tuple[float, float] = (8.0, 3.4),
) -> Figure:
    """Draws lines (name, x, y) in one plot; colors begin anew with another stroke."""
    figure = Figure(figsize=size)
    axes = figure.subplots()
    for number, (name, x, y) in enumerate(series):
        stroke = STROKES[number // len(PALETTE) % len(STROKES)]
        axes.plot(x, y, stroke, color=PALETTE[number % len(PALETTE)], lw=1.8, label=name)
    if logarithmic_x:
        axes.set_xscale("log")
    if logarithmic_y:
        axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    clean_axes(axes)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def clean_axes(axes) -> None:
    """Gives plots the house look: two spines, light horizontal grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dfe3e8", lw=0.8)
    axes.set_axisbelow(True)


def _picture(image: NDArray[np.uint8] | None, pixels: int) -> str:
    if image is None:
        return '<td class="empty">–</td>'
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"pictures must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    height = round(pixels * image.shape[0] / image.shape[1])
    return f'<td><img width="{pixels}" height="{height}" src="{_data_uri(buffer.getvalue(), "image/png")}"></td>'


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
