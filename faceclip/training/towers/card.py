"""Writes the model card and metrics.json of a tower, both from the same measured figures."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from faceclip.errors import DataError
from faceclip.statistics import Estimate
from faceclip.storage.files import read_json
from faceclip.storage.hashes import short_key

Metric = Estimate | float
_ESTIMATE = {field.name for field in fields(Estimate)}
_FIGURES = re.compile(r"## Measured on the .*?\nIntervals: [^\n]*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a reader must know to judge or repeat a training. `data`: the facts of the data set's dataset.json."""

    title: str
    summary: str
    command: str
    seed: int
    steps: int
    samples: int
    data: Mapping[str, object]
    split: str = "test"
    notes: str = ""


def dataset_facts(directory: Path) -> dict[str, Any]:
    """Returns the facts that identify a data set, from its `dataset.json`.

    They are seed, version, sizes, splits and counts; for imported photos counts, and in `photos` a hash of the import.

    Raises DataError if the file is missing, is no JSON object, or lacks the counts of photos.
    """
    path, remedy = Path(directory) / "dataset.json", "make the data set again"
    try:
        facts = read_json(path, remedy)
    except FileNotFoundError as error:
        message = f"{path}: cannot read the data set's facts ({error}); generate the data set again"
        raise DataError(message) from error
    _check_facts(facts, path, remedy, photos="request" in facts)
    names = ("version", "seed", "identities", "images_per_identity", "size", "framing", "splits", "counts")
    photos = {"photos": short_key(facts["request"], facts.get("files"))} if "request" in facts else {}
    return {name: facts[name] for name in names if name in facts} | photos


def write_card(directory: Path, card: Card, metrics: Mapping[str, Metric]) -> None:
    """Writes `metrics.json` and `README.md` into an export directory."""
    directory = Path(directory)
    facts = {"command": card.command, "seed": card.seed, "steps": card.steps, "samples": card.samples}
    body = {**facts, "data": dict(card.data), "split": card.split, "metrics": _plain(metrics)}
    (directory / "metrics.json").write_text(json.dumps(body, indent=2, sort_keys=True) + "\n")
    (directory / "README.md").write_text(_markdown(card, metrics))


def card_data(directory: Path) -> Mapping[str, object]:
    """Returns the facts of a card's data set. Raises DataError if its `metrics.json` is missing or no card."""
    return _read_facts(directory)["data"]


def renew_figures(directory: Path, metrics: Mapping[str, Metric]) -> None:
    """Replaces figures in the card of an export (`metrics.json` and `README.md`); everything else is kept.

    Raises DataError if a file is missing or no card.
    """
    directory = Path(directory)
    facts, readme = _read_facts(directory), directory / "README.md"
    kept = {name: _metric(value) for name, value in facts["metrics"].items() if name not in metrics}
    figures = {**metrics, **kept}
    try:
        prose = readme.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{readme}: cannot read the card ({error}); give the export of a tower command") from error
    table = "\n".join(_figures(facts["split"], figures))
    renewed, found = _FIGURES.subn(lambda _: table, prose, count=1)
    if not found:
        raise DataError(f"{readme}: has no table of figures; give the export of a tower command")
    facts["metrics"] = _plain(figures)
    (directory / "metrics.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    readme.write_text(renewed)


def data_command(facts: Mapping[str, Any]) -> str:
    """Returns the command that makes a data set again, from its `dataset_facts`; unknown options are left out."""
    options = {"identities": "identities", "images_per_identity": "images-per-identity", "size": "size"}
    options |= {"seed": "seed", "framing": "framing"}
    words = [f"--{option} {facts[name]}" for name, option in options.items() if name in facts]
    if "splits" in facts:
        words.append("--splits " + " ".join(str(count) for count in facts["splits"]))
    return " ".join(["python -m faceclip.people --out DIR", *words])


def data_text(facts: Mapping[str, Any]) -> str:
    """Describes a data set from its `dataset_facts`: the generator's version and command, or for photos their number
    and the hash of the import."""
    if "photos" in facts:
        counts = facts["counts"].items()
        parts = [f"{part['images']:,} photographs of {part['identities']:,} people ({name})" for name, part in counts]
        return f"imported by `python -m faceclip.data.photos`: {', '.join(parts)}, key {facts['photos']}"
    return f"version {facts.get('version', 'unknown')}: `{data_command(facts)}`"


def data_line(facts: Mapping[str, Any]) -> str:
    """Returns the card's table row about the data."""
    return f"| data | {data_text(facts)} |"


def _markdown(card: Card, metrics: Mapping[str, Metric]) -> str:
    photos = "photos" in card.data
    terms = "Apache-2.0 (code and weights); training images rendered from CC0 head geometry"
    if photos:
        terms = "that of the photographs; nothing here says that these weights may be passed on"
    lines = [
        "---",
        f"license: {'other' if photos else 'apache-2.0'}",
        f"tags: [{'photographs' if photos else 'synthetic-faces'}, tiny]",
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
        f"| license | {terms} |",
        "",
        *_figures(card.split, metrics),
    ]
    if card.notes:
        lines += ["", card.notes]
    return "\n".join(lines) + "\n"


def _figures(split: str, metrics: Mapping[str, Metric]) -> list[str]:
    lines = [
        f"## Measured on the {split} split",
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
    return [*lines, "", "Intervals: bootstrap over identities, 2,000 resamples."]


def _plain(metrics: Mapping[str, Metric]) -> dict[str, object]:
    return {name: asdict(value) if isinstance(value, Estimate) else value for name, value in metrics.items()}


def _metric(value: Any) -> Metric:
    return Estimate(**value) if isinstance(value, Mapping) else value


def _read_facts(directory: Path) -> dict[str, Any]:
    path, remedy = Path(directory) / "metrics.json", "give the export of a tower command"
    try:
        facts = read_json(path, remedy)
    except FileNotFoundError as error:
        raise DataError(f"{path}: cannot read the card ({error!r}); {remedy}") from error
    for name, kind in {"command": str, "data": dict, "split": str, "metrics": dict}.items():
        if not isinstance(facts.get(name), kind):
            raise DataError(f"{path}: {name} is missing or of another kind than that of a card; {remedy}")
    for name, value in facts["metrics"].items():
        numbers = list(value.values()) if isinstance(value, dict) and value.keys() == _ESTIMATE else [value]
        if not all(isinstance(number, int | float) for number in numbers):
            raise DataError(f"{path}: metrics.{name} is no figure; {remedy}")
    _check_facts(facts["data"], path, remedy, photos="photos" in facts["data"])
    return facts


def _check_facts(facts: Mapping[str, Any], path: Path, remedy: str, *, photos: bool) -> None:
    """Raises DataError if a card could not describe these facts of a data set."""
    if not isinstance(facts.get("splits", []), list):
        raise DataError(f"{path}: splits is no list; {remedy}")
    counts = facts.get("counts")
    parts = list(counts.values()) if isinstance(counts, Mapping) else [None]
    if photos and not all(
        isinstance(part, Mapping) and all(isinstance(part.get(name), int) for name in ("images", "identities"))
        for part in parts
    ):
        raise DataError(f"{path}: counts does not give images and identities of each split of the photos; {remedy}")
