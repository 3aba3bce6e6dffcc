"""All metrics by name and version: one name never means two things.

A version changes whenever the same pictures could get another number. Which network computed a value, with revision
and hash, stands in the result file beside it (`eval.metrics.models.ModelFacts`).
"""

from eval.metrics.face_entries import ENTRIES as FACES
from eval.metrics.metric import Metric
from eval.metrics.picture_entries import ENTRIES as PICTURES
from faceclip.errors import ConfigError

FAMILIES = ("identity", "text", "picture", "physics", "leakage", "diversity", "cost")
_ALL = sorted((*FACES, *PICTURES), key=lambda metric: FAMILIES.index(metric.family))
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def find(name: str) -> Metric:
    """Returns a metric by `name@version`. Raises ConfigError naming those that begin alike."""
    if name not in METRICS:
        stem = name.partition("@")[0].partition("/")[0]
        near = [known for known in METRICS if known.startswith(stem)] or list(METRICS)
        raise ConfigError(f"metric {name!r} is not known: choose among {', '.join(near)}")
    return METRICS[name]


def table() -> str:
    """Returns the rows of docs/metrics.md, one per metric."""
    arrow = {"higher": "↑", "lower": "↓", "neither": "·"}
    head = "| metric | | formula | network | crop | figure | failures | source | traps |"
    lines = [head, "| --- " * 9 + "|"]
    for m in _ALL:
        cells = (
            f"`{m.name}`",
            arrow[m.better],
            m.formula,
            m.model,
            m.crop,
            m.aggregation,
            m.failures,
            m.source,
            m.traps,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
