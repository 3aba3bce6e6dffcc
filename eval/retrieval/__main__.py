"""Evaluate retrieval with a stage-1 export on the test identities of a data set.

python -m eval.retrieval --model runs/encoder/export --data DIR --out runs/retrieval
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.progress import Progress

from eval.arguments import check_least, check_seed, use_device
from eval.hashes import model_hash
from eval.reports.report import Report, write_json
from eval.retrieval.page import TIE_RULE, add_sections
from eval.retrieval.run import KindResult, evaluate_kind, to_json, tune_weight
from eval.retrieval.spaces import RetrievalModel, encode_portraits
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.errors import ConfigError, EmptyDatasetError, FaceClipError
from faceclip.faces.batches import detected_faces, labelled_faces
from faceclip.retrieval.labels import labels_of
from faceclip.retrieval.queries import QUERY_KINDS, build_queries
from faceclip.training.checkpoints import make_folder

COMPOSED = "face+text"
DETECTED_KINDS = ("face_frontal", COMPOSED)


def evaluate(
    model: RetrievalModel,
    test: FaceArrays,
    validation: FaceArrays,
    *,
    kinds: tuple[str, ...] = QUERY_KINDS,
    limit: int | None = 2000,
    seed: int = 0,
    detector: bool = True,
) -> tuple[dict[str, KindResult], dict[str, KindResult], dict]:
    """Results with labelled faces, results with detected faces, and facts about both.

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
    facts, weight = {"test portraits": len(test)}, None
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


def write_results(
    out: Path, results: dict[str, KindResult], found: dict[str, KindResult], facts: dict, settings: dict
) -> dict:
    """results.json; returns its content."""
    content = {
        "settings": settings,
        "facts": facts,
        "tie rule": TIE_RULE,
        "labelled faces": to_json(results),
        "detected faces": to_json(found),
    }
    write_json(out / "results.json", content)
    return content


def add_detected(report: Report, found: dict[str, KindResult], facts: dict) -> None:
    """The section on faces that must be found first."""
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.retrieval", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="export folder of `python -m train_encoder`")
    parser.add_argument("--data", type=Path, required=True, help="data set folder")
    parser.add_argument("--out", type=Path, required=True, help="receives results.json and report.html")
    parser.add_argument("--queries", type=int, default=2000, help="at most this many of each kind, spread evenly")
    parser.add_argument("--kinds", default=",".join(QUERY_KINDS), help="comma-separated, of %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-detector", action="store_true", help="leave out the pass with detected faces")
    parser.add_argument("--device", default="cpu", help="of the model, as cuda; faces are found on the CPU")
    options = parser.parse_args(arguments)
    try:
        check_least("--queries", options.queries)
        check_seed(options.seed)
        kinds = tuple(options.kinds.split(","))
        if unknown := [kind for kind in kinds if kind not in QUERY_KINDS]:
            raise ConfigError(f"--kinds: {unknown[0]!r} is none of {', '.join(QUERY_KINDS)}")
        device = use_device(options.device)
        make_folder(options.out, "--out ")
        model = RetrievalModel.from_pretrained(options.model, device)
        test = load_arrays(options.data, "test", labelled=False)
        validation = load_arrays(options.data, "validation", labelled=False)
        results, found, facts = evaluate(
            model,
            test,
            validation,
            kinds=kinds,
            limit=options.queries,
            seed=options.seed,
            detector=not options.no_detector,
        )
        settings = {
            "queries": options.queries,
            "seed": options.seed,
            "model": model_hash(options.model),
            "data": test.content_hash,
            "validation data": validation.content_hash,
        }
        write_results(options.out, results, found, facts, settings)
        people = len(np.unique(test.identity))
        report = Report("Retrieval", f"{people} test identities, {len(test):,} portraits.")
        add_sections(report, results, test.images)
        add_detected(report, found, facts)
        path = report.write(options.out / "report.html")
        report.save_parts(options.out / "report.json")
    except FaceClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for kind, result in results.items():
        for name, outcome in result.outcomes.items():
            print(f"{kind:>13} {name:<32} rank-1 {outcome.summary['rank-1']}  mAP {outcome.summary['mAP']}")
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
