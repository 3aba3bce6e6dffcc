"""Search in large galleries: cost beside FAISS, approximate indexes, distractors, open-set identification.

    python -m eval.retrieval.scale --out DIR [--gallery 1000000] [--queries 10000] [--kinds ""]
    python -m eval.retrieval.scale --photos DIR --recognizer dlib --licence TEXT --origin TEXT --out DIR
    python -m eval.retrieval.scale --data DIR --recognizer tiny/recognizer --out DIR

The first form plants embeddings of nobody. The others add figures of real embeddings: the first portrait of each
person stands in the gallery, the others are asked for, among more and more planted distractors.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import faiss
import numpy as np
from numpy.typing import NDArray

from eval.arguments import MAX_SEED, REPORT, use_threads
from eval.benchmark.panel import load_recognizer
from eval.benchmark.references import photo_files
from eval.judges.panel import embed_faces
from eval.reports.report import Cell, Report, line_plot, write_json
from eval.retrieval.cost import Cost, compare_with_faiss
from eval.retrieval.indexes import IndexKind, Speed, distractor_curve, measure_kinds
from eval.retrieval.planted import plant
from eval.retrieval.verification import embed_photos, open_set
from eval.terms import data_terms
from faceclip.data.arrays import load_arrays
from faceclip.errors import ConfigError, EmptyDatasetError
from faceclip.faces.batches import detected_faces
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.training.checkpoints import make_folder

KINDS = ("flat", "hnsw", "ivfpq")


@dataclass(kw_only=True)
class ScaleSettings:
    """How large the galleries are, and whose embeddings stand in them."""

    out: Path = setting(help="receives results.json and report.html")
    gallery: int = setting(100_000, "planted embeddings; 0: leave out cost and kinds of indexes", least=0)
    queries: int = setting(1000, "of the planted gallery", least=1)
    width: int = setting(512, "dimensions of planted embeddings")
    per_person: int = setting(4, "planted embeddings of each person")
    likeness: float = setting(0.45, "mean cosine of two planted embeddings of a person")
    kinds: str = setting(",".join(KINDS), "comma-separated kinds of indexes; empty: none")
    best: int = setting(10, "recall is that of so many best items", least=1)
    photos: Path | None = setting(None, "folder PERSON/PHOTO.jpg, for distractors and open set")
    data: Path | None = setting(None, "data set of renders, for the same")
    recognizer: str = setting("dlib", "tower (dlib, onnx:FILE, tiny/recognizer, a folder) or shipped")
    distractors: str = setting("0,1000,10000,100000", "comma-separated numbers of distractors, growing")
    people: int | None = setting(None, "at most so many persons of the photos or data", least=2)
    licence: str = setting("", "of the photos; required with --photos")
    origin: str = setting("", "of the photos; required with --photos")
    seed: int = setting(0, "of everything that is drawn", least=0, most=MAX_SEED)
    threads: int = setting(1, "of FAISS and torch", least=1)
    sizes: tuple[int, ...] = field(init=False, default=())
    names: tuple[IndexKind, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        words = [word.strip() for word in self.kinds.split(",") if word.strip()]
        if unknown := [word for word in words if word not in KINDS]:
            raise ConfigError(f"--kinds: {unknown[0]!r} is none of {', '.join(KINDS)}")
        self.names = cast(tuple[IndexKind, ...], tuple(words))
        try:
            self.sizes = tuple(int(word) for word in self.distractors.split(","))
        except ValueError as error:
            raise ConfigError(f"--distractors: whole numbers with commas are expected, got {self.distractors!r}") from (
                error
            )
        if self.photos and self.data:
            raise ConfigError("--photos and --data: give one of them")
        if not (self.gallery or self.photos or self.data):
            raise ConfigError("--gallery 0 leaves nothing to measure: give --photos or --data as well")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Embeddings (N, D), which have a face (N,), the person of each, and what a result file says of them."""

    vectors: NDArray[np.float32]
    found: NDArray[np.bool_]
    people: list[str]
    facts: dict


def embed_labelled(settings: ScaleSettings) -> Labelled:
    """Embeds the photos or the test portraits of the data set, cut where the detector finds the face."""
    if settings.photos is not None:
        terms = data_terms(False, settings.licence, settings.origin)
        files = photo_files(settings.photos, by_person=True, people=settings.people)
        vectors, found, recognizer = embed_photos(files, settings.recognizer)
        people = [person for person, _ in files]
    else:
        assert settings.data is not None  # one of both is given
        arrays = load_arrays(settings.data, "test", labelled=False)
        terms = data_terms(not arrays.are_photos, settings.licence, settings.origin)
        (embed, size), facts = load_recognizer(settings.recognizer)
        identity = np.asarray(arrays.identity)
        rows = np.flatnonzero(np.isin(identity, np.unique(identity)[: settings.people]))
        images = [np.asarray(arrays.images[row]) for row in rows]
        faces = detected_faces(images)
        vectors, found, recognizer = embed_faces(embed, size, images, faces), faces.found, facts.to_dict()
        people = [str(person) for person in identity[rows]]
    data = {**terms, "persons": len(set(people)), "portraits": len(people), "without a face": int((~found).sum())}
    return Labelled(vectors=vectors, found=found, people=people, facts={"recognizer": recognizer, "data": data})


def find_among_distractors(labelled: Labelled, sizes: Sequence[int], *, seed: int = 0) -> list[tuple[int, Estimate]]:
    """Returns (distractors, rank-1 over persons) of all portraits but the first of each person, which is the gallery.

    A portrait without a face is never found. Raises EmptyDatasetError where no person has two portraits with a face,
    or the gallery has fewer than two persons, of whom distractors cannot learn the covariance.
    """
    _, person = np.unique(labelled.people, return_inverse=True)
    first = np.unique(person, return_index=True)[1]
    probes = np.setdiff1d(np.arange(len(person)), first)
    gallery = first[labelled.found[first]]
    seen = probes[labelled.found[probes]]
    if len(gallery) < 2 or not len(seen):
        raise EmptyDatasetError(
            "distractors need two persons in the gallery and two portraits with a face of one person, got"
            f" {len(gallery)} persons and {len(seen)} further portraits with a face: give more photos"
        )
    curve = distractor_curve(
        labelled.vectors[gallery], person[gallery], labelled.vectors[seen], person[seen], sizes, seed=seed
    )
    points = []
    for size, right in curve:
        hits = np.zeros(len(person))
        hits[seen] = right
        points.append((size, identity_bootstrap(hits[probes], person[probes])))
    return points


def measure(settings: ScaleSettings) -> None:
    """Measures, writes results and report, and prints the figures."""
    use_threads(settings.threads)
    faiss.omp_set_num_threads(settings.threads)
    labelled = embed_labelled(settings) if settings.photos or settings.data else None
    make_folder(settings.out, "--out ", REPORT)
    report = Report("Retrieval at size", f"{settings.threads} thread{'s' * (settings.threads != 1)}.")
    content: dict = {"seed": settings.seed, "threads": settings.threads}
    if settings.gallery:
        planted = plant(
            settings.gallery,
            settings.queries,
            width=settings.width,
            each=settings.per_person,
            likeness=settings.likeness,
            seed=settings.seed,
        )
        cost = compare_with_faiss(planted, threads=settings.threads)
        content["cost"] = cost
        print(f"exact ranks: {cost.ratio:.3f} times the processor time of FAISS alone, {cost.memory_gib:.1f} GiB")
        vectors = faiss.rev_swig_ptr(planted.index.get_xb(), planted.index.ntotal * planted.index.d)
        vectors = vectors.reshape(planted.index.ntotal, planted.index.d)
        speeds = measure_kinds(settings.names, vectors, planted.queries, k=settings.best) if settings.names else []
        content["kinds"] = speeds
        for speed in speeds:
            print(f"{speed.kind}: recall {speed.recall:.3f}, {speed.queries_per_second:,.0f} queries/s")
        _planted_section(report, cost, speeds, settings)
    if labelled is not None:
        curve = find_among_distractors(labelled, settings.sizes, seed=settings.seed)
        rates = open_set(labelled.vectors, labelled.found, labelled.people, seed=settings.seed)
        content |= labelled.facts
        content["distractors"] = [{"number": size, "rank-1": value} for size, value in curve]
        content["DIR at FPIR"] = rates
        _labelled_section(report, labelled, curve, rates, settings)
        for size, value in curve:
            print(f"{size:,} distractors: rank-1 {value}")
        print("DIR at FPIR", ", ".join(f"{rate.at:g}: {rate.value:.3f}" for rate in rates))
    write_json(settings.out / "results.json", content)
    print(f"report: {report.write(settings.out / 'report.html')}")


def _planted_section(report: Report, cost: Cost, speeds: Sequence[Speed], settings: ScaleSettings) -> None:
    report.section("Planted gallery")
    report.text(
        f"{cost.gallery:,} embeddings of {cost.width} dimensions around random directions, {settings.per_person} of "
        f"each person, mean cosine {settings.likeness:g} within a person; {cost.queries:,} queries. Planted people "
        "have no look-alikes: the figures are those of speed, not of recognition."
    )
    rows: list[list[Cell]] = [
        ["processor seconds, exact ranks and mAP", cost.ours_seconds],
        [f"processor seconds, FAISS's search of the best {cost.best} alone", cost.faiss_seconds],
        ["ratio", cost.ratio],
        ["queries that needed the whole gallery", cost.counted],
        ["most memory of the process, GiB", cost.memory_gib],
        ["rank-1", cost.rank_1],
        ["mAP", cost.mean_average_precision],
    ]
    report.table(["exact search", "value"], rows, caption="Both searches take turns, block by block of queries")
    if speeds:
        report.table(
            ["index", f"recall of the best {settings.best}", "queries per second", "seconds to build"],
            [[s.kind, s.recall, s.queries_per_second, s.build_seconds] for s in speeds],
            caption="Kinds of indexes against the exact search",
        )


def _labelled_section(
    report: Report, labelled: Labelled, curve: Sequence[tuple[int, Estimate]], rates: Sequence, settings: ScaleSettings
) -> None:
    data = labelled.facts["data"]
    report.section("Distractors and open set")
    report.text(
        f"{data['persons']:,} persons, {data['portraits']:,} portraits, {data['without a face']:,} without a face, by "
        f"{settings.recognizer}. Licence: {data['licence']}. Origin: {data['origin']}. The first portrait of each "
        "person is the gallery; intervals are 95 % over persons."
    )
    report.text(
        "Distractors are planted with the mean and covariance of the gallery. They are no look-alikes, so that a "
        "gallery of as many real strangers finds fewer people.",
        warning=True,
    )
    report.table(["distractors", "rank-1"], [[size, value] for size, value in curve])
    report.figure(
        line_plot(
            [(settings.recognizer, [size + 1 for size, _ in curve], [value.value for _, value in curve])],
            x_label="distractors + 1",
            y_label="rank-1",
            logarithmic_x=True,
        ),
        "Rank-1 among planted distractors.",
    )
    report.table(
        ["FPIR", "DIR, rank 1", "threshold"],
        [[f"{rate.at:g}", rate.value, rate.threshold] for rate in rates],
        caption="Open set: half of the persons in the gallery; a dash where too few strangers can tell",
    )


main = partial(run, measure, ScaleSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
