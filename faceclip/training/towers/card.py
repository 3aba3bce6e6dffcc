"""Model card and metrics.json of a shipped tower, both written from the same measured numbers."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from faceclip.errors import DataError
from faceclip.statistics import Estimate

Metric = Estimate | float


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a reader must know to judge or to repeat a training."""

    title: str
    summary: str
    command: str
    seed: int
    steps: int
    samples: int
    data: Mapping[str, object]  # the data set's own dataset.json
    split: str = "test"
    license: str = "Apache-2.0 (code and weights); training images rendered from CC0 head geometry"
    notes: str = ""


def dataset_facts(directory: Path) -> dict[str, object]:
    """What identifies a data set, from its `dataset.json`: seed, version, sizes, splits, counts.

    Raises DataError when the file is missing or not JSON.
    """
    path = Path(directory) / "dataset.json"
    try:
        facts = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        message = f"{path}: cannot read the data set's facts ({error}); generate the data set again"
        raise DataError(message) from error
    names = ("version", "seed", "identities", "images_per_identity", "size", "framing", "splits", "counts")
    return {name: facts[name] for name in names if name in facts}


def write_card(directory: Path, card: Card, metrics: Mapping[str, Metric]) -> None:
    """Write `metrics.json` and `README.md` into an export directory."""
    directory = Path(directory)
    plain = {key: asdict(value) if isinstance(value, Estimate) else value for key, value in metrics.items()}
    facts = {"command": card.command, "seed": card.seed, "steps": card.steps, "samples": card.samples}
    body = {**facts, "data": dict(card.data), "split": card.split, "metrics": plain}
    (directory / "metrics.json").write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    (directory / "README.md").write_text(_markdown(card, metrics))


def read_card(directory: Path, *, title: str, summary: str, notes: str = "") -> Card:
    """The card of an export as its `metrics.json` has it; the prose, which is not in that file, is the caller's.

    Raises DataError when the file is missing or no card.
    """
    path = Path(directory) / "metrics.json"
    try:
        facts = json.loads(path.read_text())
        kept = {name: facts[name] for name in ("command", "seed", "steps", "samples", "data", "split")}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot read the card ({error!r}); give the export of a tower command") from error
    return Card(title=title, summary=summary, notes=notes, **kept)


def data_command(facts: Mapping[str, object]) -> str:
    """The command that makes a data set again, from its `dataset_facts`; options that they lack are left out."""
    options = {"identities": "identities", "images_per_identity": "images-per-identity", "size": "size"}
    options |= {"seed": "seed", "framing": "framing"}
    words = [f"--{option} {facts[name]}" for name, option in options.items() if name in facts]
    if "splits" in facts:
        words.append("--splits " + " ".join(str(count) for count in facts["splits"]))
    return " ".join(["python -m faceclip.people --out DIR", *words])


def data_line(facts: Mapping[str, object]) -> str:
    """The card's line about the data: version of the generator, and the command."""
    return f"| data | version {facts.get('version', 'unknown')}: `{data_command(facts)}` |"


def _markdown(card: Card, metrics: Mapping[str, Metric]) -> str:
    lines = [
        "---",
        "license: apache-2.0",
        "tags: [synthetic-faces, tiny]",
        "---",
        f"# {card.title}",
        "",
        card.summary,
        "",
        "| | |",
        "|---|---|",
        f"| command | `{card.command}` |",
        f"| seed | {card.seed} |",
        f"| steps | {card.steps} ({card.samples} samples seen) |",
        data_line(card.data),
        f"| license | {card.license} |",
        "",
        f"## Measured on the {card.split} split",
        "",
        "| figure | value | 95 % interval | n | identities |",
        "|---|---|---|---|---|",
    ]
    for name, metric in metrics.items():
        if isinstance(metric, Estimate):
            interval = f"{metric.low:.3f} to {metric.high:.3f} | {metric.count} | {metric.identities}"
            lines.append(f"| {name} | {metric.value:.3f} | {interval} |")
        else:
            lines.append(f"| {name} | {metric:.3f} | | | |")
    lines += ["", "Intervals: bootstrap over identities, 2,000 resamples."]
    if card.notes:
        lines += ["", card.notes]
    return "\n".join(lines) + "\n"
