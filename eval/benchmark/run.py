"""The whole benchmark: claim the folder, draw, measure, compare, write."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from eval.benchmark.compare import compare
from eval.benchmark.drawing import claim, draw_all, gallery
from eval.benchmark.measure import Measured, Views, measure, reference_views
from eval.benchmark.methods import CALIBRATION, PLAIN, Method, MethodSettings, load_method, read_methods
from eval.benchmark.page import make_report
from eval.benchmark.panel import Panel, load_panel
from eval.benchmark.suite import SYNTHETIC, Suite, read_suite
from eval.benchmark.synthetic import SyntheticSettings, synthetic_methods, synthetic_suite
from eval.benchmark.tables import write_all
from eval.hashes import code_hash
from faceclip.errors import ConfigError
from faceclip.settings import to_dict
from faceclip.storage.files import write_text
from faceclip.storage.hashes import bytes_hash
from faceclip.storage.locks import locked
from faceclip.training.progress import counting_columns
from makeup_plugin.marking.provenance import software_version


def benchmark(
    suite: Path | str,
    methods: Path | None,
    out: Path,
    *,
    synthetic: SyntheticSettings | None = None,
    device: str = "cpu",
    retry: bool = False,
    draw_only: bool = False,
) -> Path | None:
    """Draws what is missing, measures everything and writes the report, whose path is returned; None with `draw_only`.

    suite: a file, or "synthetic". methods: a file; None is allowed for the synthetic suite. Raises ConfigError,
    DataError, CheckpointError or a face error.
    """
    if suite == SYNTHETIC:
        built = synthetic_suite(out / "data", synthetic or SyntheticSettings())
    else:
        built = read_suite(Path(suite))
    if methods is None and suite != SYNTHETIC:
        raise ConfigError("methods: name the file of the methods")
    wanted = synthetic_methods() if methods is None else read_methods(methods)
    return run_suite(built, wanted, out, device=device, retry=retry, draw_only=draw_only)


def run_suite(
    suite: Suite,
    wanted: list[MethodSettings],
    out: Path,
    *,
    device: str = "cpu",
    retry: bool = False,
    draw_only: bool = False,
) -> Path | None:
    """Runs `benchmark` with a suite and methods that were read already."""
    panel = None if draw_only else load_panel(suite, device)  # what is wrong with a network is said before drawing
    loaded: dict[str, Method] = {}
    facts: dict[str, Any] = {}
    for settings in wanted:
        # One method at a time: several large pipelines do not fit side by side.
        method = load_method(settings, suite, device)
        facts[settings.name] = {"kind": settings.kind, "licence": settings.licence, **method.facts}
        if len(wanted) == 1 or settings.kind in (*CALIBRATION, "folder"):
            loaded[settings.name] = method
        del method
    claim(out, suite, facts)
    with Progress(*counting_columns()) as bar:
        task = bar.add_task("pictures", total=len(wanted) * len(suite.jobs))
        for settings in wanted:
            bar.update(task, description=settings.name)

            def load(settings: MethodSettings = settings) -> Method:
                return loaded.get(settings.name) or load_method(settings, suite, device)

            draw_all(out, suite, settings, load, progress=lambda n: bar.advance(task, n), retry=retry)
    if panel is None:
        return None
    with locked(out / ".measure.lock"):
        return _measure(suite, panel, wanted, facts, out)


def _measure(suite: Suite, panel: Panel, wanted: list[MethodSettings], facts: dict[str, Any], out: Path) -> Path:
    """Measures and writes everything; of several processes that finish together, the first does it for all."""
    galleries = {settings.name: gallery(out, suite, settings.name) for settings in wanted}
    protocol = make_protocol(suite, panel, wanted, facts)
    records = repr([(name, shown.records) for name, shown in galleries.items()])
    key = bytes_hash(json.dumps(protocol, sort_keys=True).encode(), records.encode())
    done = out / "measured.json"
    if done.is_file() and (out / "report.html").is_file() and done.read_text().strip() == json.dumps({"of": key}):
        return out / "report.html"
    references = reference_views(suite, panel)
    plain: Views | None = None
    drawn = None
    measured: dict[str, Measured] = {}
    # Pictures without identity come first: others are compared with them.
    for settings in sorted(wanted, key=lambda item: item.kind != PLAIN):
        shown = galleries[settings.name]
        measured[settings.name], views = measure(suite, panel, references, shown, plain, drawn)
        if plain is None and settings.kind == PLAIN:
            plain, drawn = views, shown.drawn
    measured = {settings.name: measured[settings.name] for settings in wanted}
    contenders = [settings.name for settings in wanted if settings.kind not in CALIBRATION]
    comparison = compare(suite, measured, contenders)
    write_all(out, suite, protocol, galleries, measured, comparison)
    report = make_report(suite, panel, protocol, galleries, measured, comparison, contenders)
    path = report.write(out / "report.html")
    write_text(done, json.dumps({"of": key}))
    return path


def make_protocol(suite: Suite, panel: Panel, wanted: list[MethodSettings], facts: dict[str, Any]) -> dict[str, Any]:
    """Returns what repeats the run: suite, methods, networks with hashes, code, and metrics that were not measured."""
    photos = suite.references.photos
    return json.loads(
        json.dumps(
            {
                "suite": to_dict(suite.settings),
                "plan": suite.plan_hash,
                "references": {
                    "chosen": len(suite.references.chosen),
                    "photos": len(photos),
                    "without a face": list(suite.references.without_face),
                    "rendered": suite.references.rendered,
                },
                "prompts": [asdict(prompt) for prompt in suite.prompts],
                "methods": [{**to_dict(settings), "facts": facts[settings.name]} for settings in wanted],
                "networks": {name: found.to_dict() for name, found in panel.facts.items()},
                "not measured": dict(panel.missing),
                "software": {"version": software_version(), "code": code_hash("faceclip", "makeup_plugin", "eval")},
            },
            default=str,
        )
    )
