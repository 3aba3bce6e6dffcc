"""The picture wall of a report: one row per reference, prompt and seed, one column per method, sortable by metric."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval.benchmark.drawing import Gallery
from eval.benchmark.measure import Measured, metric_of
from eval.benchmark.suite import Suite
from eval.metrics.registry import METRICS

ROWS = 36  # of the wall: half the worst of the first method, half the first of the plan
FIRST = "facesim/all@1"  # what it is sorted by at the beginning, where it was measured
SIDE = 144  # px of a picture as it is embedded

_STYLE = """
#wall td, #wall th { text-align: center; white-space: normal; max-width: 190px; border: 0; padding: 4px;
  font-size: 12.5px; vertical-align: top; }
#wall span { display: block; color: var(--muted); }
#wall img { border-radius: 4px; display: block; margin: 0 auto; }
"""
_SCRIPT = """
(function () {
  var wall = document.getElementById("wall"), body = wall.tBodies[0];
  var metric = document.getElementById("wall-metric"), method = document.getElementById("wall-method");
  var direction = JSON.parse(document.getElementById("wall-direction").textContent);
  function sort() {
    var rows = Array.prototype.slice.call(body.rows);
    var sign = direction[metric.value] === "lower" ? -1 : 1;
    rows.forEach(function (row) {
      var all = JSON.parse(row.dataset.values), found = (all[method.value] || {})[metric.value];
      row.key = found === null || found === undefined ? Infinity : sign * found;
      Array.prototype.forEach.call(row.querySelectorAll("[data-method]"), function (cell) {
        var value = (all[cell.dataset.method] || {})[metric.value];
        cell.querySelector("span").textContent = value === null || value === undefined ? "–" : value.toFixed(3);
      });
    });
    rows.sort(function (a, b) { return a.key < b.key ? -1 : a.key > b.key ? 1 : 0; });
    rows.forEach(function (row) { body.appendChild(row); });
  }
  metric.onchange = method.onchange = sort;
  sort();
})();
"""


def wall(
    suite: Suite,
    galleries: Mapping[str, Gallery],
    measured: Mapping[str, Measured],
    first: str,
    columns: Sequence[str],
) -> str:
    """Returns markup of the wall; all names are escaped. first: the method by whose first column the rows are sorted at
    the beginning, the worst first."""
    columns = [name for name in columns if _is_sortable(name)]
    if not columns or not suite.jobs:
        return ""
    columns.sort(key=lambda name: not name.startswith(FIRST))
    rows = _picked(suite, measured[first], columns[0])
    direction = {name: METRICS[metric_of(name)].better for name in columns}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in galleries)
    body = []
    for row in rows:
        job = suite.jobs[row]
        photo, prompt = suite.references.photos[job.reference], suite.prompts[job.prompt]
        values = {
            method: {name: _number(found.values[name][row]) for name in columns if name in found.values}
            for method, found in measured.items()
        }
        cells = "".join(
            f'<td data-method="{html.escape(method)}">{_shown(gallery, row)}<span></span></td>'
            for method, gallery in galleries.items()
        )
        label = f"{prompt.text} · seed {job.seed}"
        body.append(
            f'<tr data-values="{html.escape(json.dumps(values))}"><th>{html.escape(label)}</th>'
            f"<td>{_picture(photo.image)}<span>{html.escape(photo.person)}</span></td>{cells}</tr>"
        )

    def choices(names: Sequence[str]) -> str:
        return "".join(f"<option>{html.escape(name)}</option>" for name in names)

    methods = [first, *(name for name in galleries if name != first)]
    directions = json.dumps(direction).replace("</", "<\\/")
    return (
        f"<style>{_STYLE}</style>"
        f'<p>Sorted by <select id="wall-metric">{choices(columns)}</select> of '
        f'<select id="wall-method">{choices(methods)}</select>, the worst first.</p>'
        f'<div class="scroll"><table id="wall"><thead><tr><th></th><th>reference</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f'<script type="application/json" id="wall-direction">{directions}</script>'
        f"<script>{_SCRIPT}</script>"
    )


def _is_sortable(name: str) -> bool:
    return METRICS[metric_of(name)].better != "neither" and not name.startswith("cost/")


def _picked(suite: Suite, found: Measured, name: str) -> list[int]:
    """Returns rows of the worst pictures by a column and the first of the plan, each once."""
    values = found.values.get(name, np.zeros(len(suite.jobs)))
    sign = -1 if METRICS[metric_of(name)].better == "lower" else 1
    worst = np.argsort(np.where(np.isnan(values), np.inf, sign * values), kind="stable")[: ROWS // 2]
    return list(dict.fromkeys([*map(int, worst), *range(len(suite.jobs))]))[:ROWS]


def _picture(image: NDArray[np.uint8]) -> str:
    picture = Image.fromarray(np.asarray(image))
    factor = SIDE / max(picture.size)
    shown = tuple(max(1, round(side * factor)) for side in picture.size)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)  # a small one stays small, and the page enlarges it
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width="{shown[0]}" height="{shown[1]}" src="data:image/jpeg;base64,{data}">'


def _shown(gallery: Gallery, row: int) -> str:
    """Returns the picture, or the reason why it is missing."""
    if gallery.drawn[row]:
        return _picture(gallery.images[row])
    record = gallery.records[row]
    return f"<em>{html.escape(record.error or 'no such picture')}</em>"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)
