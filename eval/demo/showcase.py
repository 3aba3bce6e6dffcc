"""The demo's last stage: pictures of test identities with prompts, and one report of everything.

python -m eval.demo.showcase runs/demo
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from eval.demo.curves import add_curves
from eval.demo.records import read_times
from eval.reports.report import Report
from eval.reports.sheet import save_sheet
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.errors import ConfigError
from faceclip.settings import run, setting
from makeup_plugin.loading import load_pipeline
from makeup_plugin.marking.provenance import sheet_record
from makeup_plugin.output import FaceMakeUpOutput

PROMPTS = (
    "A smiling person with red hair.",
    "A person with round glasses and a blue cap.",
    "A surprised person with long blond hair.",
    "An angry person with a full beard and a green hoodie.",
)
PEOPLE = 5


def draw_people(root: Path, arrays: FaceArrays) -> tuple[list[list], list[str]]:
    """Returns rows of reference, shading map that the pipeline fitted, and a picture per prompt, of each person by the
    shipped pipeline and by the one that was trained here; and the row labels."""
    places: dict[str, str | Path] = {"shipped": "tiny", "trained here": root / "generator" / "export"}
    pipelines = {title: load_pipeline(place, device="cpu", progress=False) for title, place in places.items()}
    grid, labels = [], []
    for row in choose_references(arrays):
        portrait, person = np.asarray(arrays.images[row]), int(arrays.identity[row])
        for title, pipeline in pipelines.items():
            output: FaceMakeUpOutput = pipeline(  # type: ignore[assignment]  # a tuple is returned only on demand
                list(PROMPTS),
                image=portrait,
                landmarks=np.asarray(arrays.landmarks_5[row]),
                generator=[torch.Generator().manual_seed(index) for index in range(len(PROMPTS))],
            )
            shading = output.shading_maps[0]
            pictures = [np.asarray(image.convert("RGB")) for image in output.images]
            output.save(root / "pictures" / title.replace(" ", "_"), prefix=f"person_{person}")
            grid.append([portrait, None if shading is None else np.asarray(shading), *pictures])
            labels.append(f"test identity {person}, {title}")
    return grid, labels


def choose_references(arrays: FaceArrays) -> list[int]:
    """Returns the first test identities, each with a portrait turned by 10 to 40°, without sunglasses and hat."""
    rows = []
    yaw = np.abs(arrays.pose[:, 0])
    plain = (arrays.attribute_values("glasses") != "sunglasses") & (arrays.attribute_values("hat") == "none")
    for person in np.unique(arrays.identity)[:PEOPLE]:
        own = np.flatnonzero(arrays.identity == person)
        good = [row for row in own if plain[row] and 10 <= yaw[row] <= 40]
        rows.append(int(good[0] if good else own[0]))
    return rows


def build_report(root: Path) -> Path:
    """Writes all results of the demo to runs/demo/report.html. Raises ConfigError if an earlier stage did not run."""
    for part in ("generation/results.json", "generation/report.json", "retrieval/report.json"):
        if not (root / part).is_file():
            raise ConfigError(f"{root / part} does not exist: give the folder in which `python -m eval.demo` ran")
    settings = json.loads((root / "generation" / "results.json").read_text())["settings"]
    stored = read_times(root)
    times = {name: entry for name, entry in stored.items() if entry["seconds"] is not None}  # not the one running now
    arrays = load_arrays(root / "data", "test")
    people = len(np.unique(arrays.identity))

    report = Report("FaceCLIP and Face-MakeUp: the demo", f"{people} synthetic test identities that no training saw.")
    report.text(
        "A joint encoder (face and prompt become one representation) and a generator plugin were trained on this "
        "machine from the shipped tiny towers, on rendered people who do not exist. The same code runs the full-size "
        "models; here everything is small, and the figures below are the demo's: few pictures, few training steps."
    )
    grid, labels = draw_people(root, arrays)
    headers = ["reference", "fitted shading map", *PROMPTS]
    report.section("Same person, other words")
    report.text(
        "One portrait of a test identity goes in; the pipeline finds pose, light and shape of the face, renders them "
        "as a shading map, and draws the person as each prompt says. The first test identities and first seeds; the "
        "reference is a person's first portrait turned by 10 to 40° without sunglasses or hat, where there is one. "
        "The upper row of each person is drawn by the pipeline that ships with the package, the lower one by the "
        "pipeline that was trained here, on a fresh joint encoder, within minutes."
    )
    report.image_grid(grid, row_labels=labels, column_labels=headers, pixels=128)
    record = sheet_record(model=f"tiny, {root / 'generator' / 'export'}", prompts=PROMPTS)
    save_sheet(root / "portraits.png", grid, headers, row_labels=labels, provenance=record)

    report.append_parts(root / "generation" / "report.json")
    report.text(
        f"Only {settings['images per arm']} pictures per arm after a short training: intervals are wide. The README "
        "names the commands for longer ones.",
        warning=True,
    )
    report.append_parts(root / "retrieval" / "report.json")
    report.section("Training")
    add_curves(report, root)
    report.section("What ran")
    report.table(
        ["stage", "seconds"],
        [
            [f"{name} (interrupted: its last part)" if entry.get("resumed") else name, round(entry["seconds"])]
            for name, entry in times.items()
        ]
        or [["report", None]],
    )
    report.code("\n".join(entry["shown"] for entry in times.values()))
    return report.write(root / "report.html")


@dataclass(kw_only=True)
class ShowcaseSettings:
    """What is shown."""

    run: Path = setting(help="folder of a demo", positional=True)


def show(settings: ShowcaseSettings) -> None:
    """Builds the report and says where it is."""
    print(f"report: {build_report(settings.run)}")


main = partial(run, show, ShowcaseSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
