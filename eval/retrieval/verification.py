"""Do two photos show one person? LFW's protocol of ten folds, TAR at FAR, DET, and open-set identification.

    python -m eval.retrieval.verification --photos DIR --recognizer dlib --licence TEXT --origin TEXT --out DIR \\
        [--pairs pairs.txt]

`pairs.txt` is LFW's file of pairs. Without it ten folds of persons are drawn, with as many pairs of one person as of
two, and the result says that they are not the official ones.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.arguments import MAX_SEED, REPORT, use_threads
from eval.benchmark.panel import load_recognizer
from eval.benchmark.references import photo_files
from eval.judges.panel import embed_faces
from eval.reports.report import Report, line_plot, write_json
from eval.retrieval.open_set import acceptance_rates, error_tradeoff, fold_accuracy, identification_rates
from eval.retrieval.search import unit
from eval.terms import data_terms
from faceclip.errors import DataError, EmptyDatasetError
from faceclip.faces import load_image
from faceclip.faces.batches import upright_faces
from faceclip.settings import run, setting
from faceclip.storage.regular import read_regular
from faceclip.training.checkpoints import make_folder

FOLDS = 10
AT_ONCE = 256  # photos decoded at a time


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Rows of the first and second photo of each pair (P,), whether they show one person, and the fold."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]
    fold: NDArray[np.int64]
    official: bool


def read_pairs(path: Path, files: Sequence[tuple[str, Path]]) -> Pairs:
    """Reads LFW's pairs.txt: "FOLDS PAIRS", then per fold PAIRS lines "NAME N M" and PAIRS lines "NAME N OTHER M".

    Raises DataError naming the line, also for a photo that is not there.
    """
    rows = {path.stem: number for number, (_, path) in enumerate(files)}

    def row(person: str, number: str, line: int) -> int:
        stem = f"{person}_{int(number):04d}" if number.isdecimal() else ""
        if stem not in rows:
            raise DataError(f"--pairs {path}, line {line}: there is no photo {person} {number} under --photos")
        return rows[stem]

    try:
        lines = [line.split() for line in read_regular(path, 2**28).decode("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--pairs {path} cannot be read ({error})") from error
    head = lines[0] if lines else []
    if len(head) not in (1, 2) or not all(word.isdecimal() and int(word) for word in head):
        raise DataError(f"--pairs {path}, line 1: expected the numbers of folds and of pairs, as in LFW's file")
    each = int(head[-1])
    found = []
    for number, words in enumerate(lines[1:], start=2):
        if len(words) == 3:
            found.append((row(words[0], words[1], number), row(words[0], words[2], number), True))
        elif len(words) == 4:
            found.append((row(words[0], words[1], number), row(words[2], words[3], number), False))
        elif words:
            raise DataError(f"--pairs {path}, line {number}: expected NAME N M or NAME N OTHER M")
    fold = np.arange(len(found)) // (2 * each)
    first, second, same = np.array(found, np.int64).reshape(-1, 3).T
    return Pairs(first=first, second=second, same=same.astype(bool), fold=fold, official=True)


def draw_pairs(people: Sequence[str], *, each: int = 300, seed: int = 0) -> Pairs:
    """Returns ten folds of persons, in each up to `each` pairs of one person and as many of two; no person is in two
    folds.

    people: of each photo. Raises EmptyDatasetError for fewer than two persons with two photos per fold.
    """
    generator = np.random.default_rng([seed, 31])
    names, person = np.unique(people, return_inverse=True)
    order = generator.permutation(len(names))
    drawn: list[tuple[int, int, bool, int]] = []  # both rows, whether they show one person, fold
    for number in range(FOLDS):
        members = order[number::FOLDS]
        rows = np.flatnonzero(np.isin(person, members))
        of_one = [(a, b) for a in rows for b in rows if a < b and person[a] == person[b]]
        if not of_one or len(members) < 2:
            raise EmptyDatasetError("--photos: ten folds need twenty persons, and persons with two photos in each fold")
        count = min(each, len(of_one))
        drawn += [(*of_one[place], True, number) for place in generator.permutation(len(of_one))[:count]]
        taken: set[tuple[int, int]] = set()
        for _ in range(100 * count):
            a, b = sorted(int(v) for v in generator.choice(rows, 2, replace=False))
            if person[a] != person[b]:
                taken.add((a, b))
            if len(taken) == count:
                break
        drawn += [(a, b, False, number) for a, b in sorted(taken)]
    first, second, same, fold = (np.array(column) for column in zip(*drawn, strict=True))
    return Pairs(first=first, second=second, same=same, fold=fold, official=False)


def embed_photos(
    files: Sequence[tuple[str, Path]], recognizer: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict]:
    """Returns unit embeddings (N, D) of photos, zeros without a face, and which have one; facts of the recognizer."""
    (embed, size), facts = load_recognizer(recognizer)
    parts, found = [], []
    for start in range(0, len(files), AT_ONCE):
        images = [load_image(path) for _, path in files[start : start + AT_ONCE]]
        images, faces = upright_faces(images, label=f"faces {start + len(images):,} of {len(files):,}")
        parts.append(embed_faces(embed, size, images, faces))
        found.append(faces.found)
    return np.concatenate(parts), np.concatenate(found), facts.to_dict()


def measure(
    vectors: NDArray[np.float32], found: NDArray[np.bool_], people: Sequence[str], pairs: Pairs, *, seed: int = 0
) -> dict:
    """Measures all figures of embeddings (N, D) as plain values; a failed photo's comparisons have the score −inf."""
    both = found[pairs.first] & found[pairs.second]
    scores = np.where(both, (vectors[pairs.first] * vectors[pairs.second]).sum(axis=1), -np.inf)
    accuracy = fold_accuracy(scores, pairs.same, pairs.fold)
    genuine, impostors = scores[pairs.same], scores[~pairs.same]
    accepted, rejected = error_tradeoff(genuine, impostors[np.isfinite(impostors)])
    return {
        "accuracy": asdict(accuracy),
        "pairs": {"one person": int(pairs.same.sum()), "two": int((~pairs.same).sum()), "official": pairs.official},
        "failure to enrol": float((~found).mean()),
        "TAR at FAR": [asdict(rate) for rate in acceptance_rates(genuine, impostors)],
        "DIR at FPIR": [asdict(rate) for rate in open_set(vectors, found, people, seed=seed)],
        "DET": {"false acceptance": accepted.tolist(), "false rejection": rejected.tolist()},
    }


def open_set(vectors: NDArray[np.float32], found: NDArray[np.bool_], people: Sequence[str], *, seed: int = 0) -> list:
    """Measures identification with half of the persons in the gallery, by the first photo; other photos are probes."""
    names, person = np.unique(people, return_inverse=True)
    inside = np.random.default_rng([seed, 32]).permutation(len(names))[: len(names) // 2]
    first = np.unique(person, return_index=True)[1]
    gallery = first[inside][found[first[inside]]]
    probes = np.setdiff1d(np.arange(len(person)), first)
    if not len(gallery) or not len(probes):
        raise EmptyDatasetError("--photos: open-set identification needs persons with two photos")
    scores = np.where(found[probes][:, None], unit(vectors[probes]) @ unit(vectors[gallery]).T, -np.inf)
    best, right = scores.max(axis=1), person[gallery][scores.argmax(axis=1)] == person[probes]
    known = np.isin(person[probes], inside)
    return identification_rates(best[known], right[known], best[~known])


@dataclass(kw_only=True)
class VerificationSettings:
    """Which photos, by which recognizer, and whose pairs."""

    photos: Path = setting(help="folder PERSON/PHOTO.jpg")
    out: Path = setting(help="receives results.json and report.html")
    recognizer: str = setting("dlib", "tower (dlib, onnx:FILE, tiny/recognizer, a folder) or shipped")
    pairs: Path | None = setting(None, "LFW's pairs.txt; without it folds are drawn")
    each: int = setting(300, "pairs of one person per drawn fold, and as many of two", least=1)
    people: int | None = setting(None, "at most so many persons", least=2)
    licence: str = setting(help="of the photos")
    origin: str = setting(help="of the photos")
    seed: int = setting(0, "of drawn folds and of the open set", least=0, most=MAX_SEED)
    threads: int | None = setting(None, "torch threads", least=1)


def verify(settings: VerificationSettings) -> None:
    """Measures, writes the report and prints the figures."""
    terms = data_terms(False, settings.licence, settings.origin)
    use_threads(settings.threads)
    files = photo_files(settings.photos, by_person=True, people=settings.people)
    people = [person for person, _ in files]
    pairs = (
        read_pairs(settings.pairs, files)
        if settings.pairs
        else draw_pairs(people, each=settings.each, seed=settings.seed)
    )
    make_folder(settings.out, "--out ", REPORT)
    vectors, found, facts = embed_photos(files, settings.recognizer)
    content = measure(vectors, found, people, pairs, seed=settings.seed)
    content |= {"recognizer": facts, "data": {**terms, "persons": len(set(people)), "photos": len(files)}}
    write_json(settings.out / "results.json", content)
    path = _report(content, settings).write(settings.out / "report.html")
    accuracy = content["accuracy"]
    print(f"accuracy {accuracy['mean']:.4f} ± {accuracy['error']:.4f}; {accuracy['failed']} pairs lack a face")
    for name in ("TAR at FAR", "DIR at FPIR"):
        print(name, ", ".join(f"{rate['at']:g}: {rate['value']:.3f}" for rate in content[name]))
    print(f"report: {path}")


def _report(content: Mapping, settings: VerificationSettings) -> Report:
    data, accuracy = content["data"], content["accuracy"]
    report = Report("Verification", f"{data['persons']:,} persons, {data['photos']:,} photos, {settings.recognizer}.")
    report.section("Figures")
    report.text(f"Licence of the photos: {data['licence']}. Origin: {data['origin']}.")
    if not content["pairs"]["official"]:
        report.text("The pairs were drawn here: the accuracy is not that of LFW's official pairs.", warning=True)
    report.table(
        ["figure", "value"],
        [
            ["accuracy, mean over folds", f"{accuracy['mean']:.4f} ± {accuracy['error']:.4f}"],
            ["pairs with a photo without a face, judged two people", accuracy["failed"]],
            ["failure to enrol", content["failure to enrol"]],
            *([f"TAR at FAR {rate['at']:g}", rate["value"]] for rate in content["TAR at FAR"]),
            *([f"DIR at FPIR {rate['at']:g}", rate["value"]] for rate in content["DIR at FPIR"]),
        ],
    )
    curve = content["DET"]
    report.figure(
        line_plot(
            [(settings.recognizer, curve["false acceptance"], curve["false rejection"])],
            x_label="false acceptance",
            y_label="false rejection",
            logarithmic_x=True,
        ),
        "Detection error trade-off.",
    )
    return report


main = partial(run, verify, VerificationSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
