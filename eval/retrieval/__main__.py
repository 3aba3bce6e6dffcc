"""Evaluate retrieval with a stage-1 export on the test identities of a data set.

python -m eval.retrieval --model runs/encoder/export --data DIR --out runs/retrieval
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from rich.progress import Progress

from eval.arguments import MAX_SEED, REPORT
from eval.hashes import pipeline_hash
from eval.reports.report import Report, write_json
from eval.retrieval.page import TIE_RULE, add_sections
from eval.retrieval.run import KindResult, evaluate_kind, to_json, tune_weight
from eval.retrieval.spaces import RetrievalModel, encode_portraits
from eval.terms import data_terms
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.errors import ConfigError, EmptyDatasetError
from faceclip.faces.batches import detected_faces, labelled_faces
from faceclip.retrieval.labels import labels_of
from faceclip.retrieval.queries import QUERY_KINDS, QueryKind, build_queries
from faceclip.settings import run, setting
from faceclip.towers.placement import named_device
from faceclip.training.checkpoints import make_folder

COMPOSED: QueryKind = "face+text"
DETECTED_KINDS: tuple[QueryKind, ...] = ("face_frontal", COMPOSED)


def evaluate(
    model: RetrievalModel,
    test: FaceArrays,
    validation: FaceArrays,
    *,
    kinds: tuple[QueryKind, ...] = QUERY_KINDS,
    limit: int | None = 2000,
    seed: int = 0,
    detector: bool = True,
) -> tuple[dict[QueryKind, KindResult], dict[QueryKind, KindResult], dict]:
    """Returns results with labelled faces, results with detected faces, and facts about both.

    Raises EmptyDatasetError, before anything is computed, for queries that a split does not allow.
    """
    labels, others = labels_of(test), labels_of(validation)
    composed = COMPOSED in kinds
    for split, known, wanted in (("test", labels, kinds), ("validation", others, (COMPOSED,) if composed else ())):
        for kind in wanted:
            try:
                build_queries(known, kind, seed=seed, limit=1)
            except EmptyDatasetError as error:
                raise EmptyDatasetError(f"{split} split: {error} (--kinds chooses what is asked)") from error
    portraits = encode_portraits(model, test.images, labelled_faces(test.landmarks_5))
    facts: dict[str, float] = {"test portraits": len(test)}
    weight = None
    if composed:
        tuning = encode_portraits(model, validation.images, labelled_faces(validation.landmarks_5))
        weight = tune_weight(model, tuning, others, seed=seed, limit=1000)
        facts["concatenation weight of the face"] = weight
    results, found_results = {}, {}
    with Progress(transient=True) as bar:
        task = bar.add_task("queries", total=None)
        for kind in kinds:
            bar.update(task, description=f"{kind} queries")
            results[kind] = evaluate_kind(
                model,
                portraits,
                labels,
                kind,
                seed=seed,
                limit=limit,
                weight=weight,
                progress=lambda count: bar.advance(task, count),
            )
    if detector and set(kinds) & set(DETECTED_KINDS):
        faces = detected_faces(test.images, label="finding faces")
        facts["faces found by the detector"] = float(faces.found.mean())
        turned = np.abs(test.pose[:, 0]) > 40
        if turned.any():
            facts["found beyond 40° of yaw"] = float(faces.found[turned].mean())
        seen = encode_portraits(model, test.images, faces)
        for kind in DETECTED_KINDS:
            if kind in kinds:
                found_results[kind] = evaluate_kind(model, seen, labels, kind, seed=seed, limit=limit, weight=weight)
    return results, found_results, facts


def add_detected(report: Report, found: dict[QueryKind, KindResult], facts: dict) -> None:
    """Adds the section on faces that must be found first."""
    if not found:
        return
    report.section("Faces found by the detector")
    report.text(
        f"The figures above cut faces where the labels say. Here MTCNN has to find them: it finds "
        f"{facts['faces found by the detector']:.1%} of the test portraits' faces. In spaces that use the face, every "
        "other query is a miss and every other portrait cannot be found; text, image and random need no face and lose "
        "nothing."
    )
    for kind, result in found.items():
        rows = [
            [name, outcome.summary["rank-1"], outcome.summary["mAP"], result.differences.get(name)]
            for name, outcome in result.outcomes.items()
        ]
        report.table(["space", "rank-1", "mAP", "joint − space, rank-1"], rows, caption=kind, emphasized=[0])


@dataclass(kw_only=True)
class RetrievalSettings:
    """What is evaluated, and by which queries."""

    model: Path = setting(
        help="export folder of `python -m train_encoder`, a saved pipeline, or tiny, the one that ships"
    )
    data: Path = setting(help="data set folder")
    out: Path = setting(help="receives results.json and report.html")
    queries: int = setting(2000, "at most this many of each kind, spread evenly", least=1)
    kinds: str = setting(",".join(QUERY_KINDS), "comma-separated, of the default's")
    seed: int = setting(0, "of the choice of queries", least=0, most=MAX_SEED)
    detector: bool = setting(True, "--no-detector leaves out the pass with detected faces")
    device: str = setting("cpu", "of the model, as cuda; faces are found on the CPU")
    licence: str = setting("", "of the data; required for photographs")
    origin: str = setting("", "of the data; required for photographs")

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds.split(",") if kind not in QUERY_KINDS]:
            raise ConfigError(f"--kinds: {unknown[0]!r} is none of {', '.join(QUERY_KINDS)}")


def search_and_report(settings: RetrievalSettings) -> None:
    """Evaluates, writes the results and the report, and prints the figures."""
    device = named_device(settings.device, "--device")
    make_folder(settings.out, "--out ", REPORT)
    model = RetrievalModel.from_pretrained(settings.model, device)
    test = load_arrays(settings.data, "test", labelled=False)
    terms = data_terms(not test.are_photos, settings.licence, settings.origin)
    validation = load_arrays(settings.data, "validation", labelled=False)
    results, found, facts = evaluate(
        model,
        test,
        validation,
        kinds=cast("tuple[QueryKind, ...]", tuple(settings.kinds.split(","))),
        limit=settings.queries,
        seed=settings.seed,
        detector=settings.detector,
    )
    noted = {
        "queries": settings.queries,
        "seed": settings.seed,
        "model": pipeline_hash(settings.model),
        "data": test.content_hash,
        "validation data": validation.content_hash,
        "data terms": terms,
    }
    content = {
        "settings": noted,
        "facts": facts,
        "tie rule": TIE_RULE,
        "labelled faces": to_json(results),
        "detected faces": to_json(found),
    }
    write_json(settings.out / "results.json", content)
    people = len(np.unique(test.identity))
    report = Report(
        "Retrieval", f"{people} test identities, {len(test):,} portraits. Data: {terms['licence']}; {terms['origin']}."
    )
    add_sections(report, results, test.images)
    add_detected(report, found, facts)
    path = report.write(settings.out / "report.html")
    report.save_parts(settings.out / "report.json")
    for kind, result in results.items():
        for name, outcome in result.outcomes.items():
            print(f"{kind:>13} {name:<32} rank-1 {outcome.summary['rank-1']}  mAP {outcome.summary['mAP']}")
    print(f"report: {path}")


main = partial(run, search_and_report, RetrievalSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
