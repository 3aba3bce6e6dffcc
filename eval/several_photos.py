"""What more photos of a person bring: the identity averaged from 1 to 4 of them against portraits that it never saw.

    python -m eval.several_photos --data DIR [--people 100] [--most 4] [--model EXPORT --pictures 20] [--out FILE.json]

Embeddings of test people are averaged as `FaceMakeUpPipeline.encode_identity` does. With `--model`, pictures are drawn
from the identities too, and the recognizers look at these.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from eval.arguments import MAX_SEED, load_model
from eval.judges.panel import Judges, embed_faces, load_judges
from eval.reports.report import show_figures
from faceclip import weights
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.errors import ConfigError
from faceclip.faces.batches import detected_faces, labelled_faces
from faceclip.settings import run, setting
from faceclip.statistics import Estimate, identity_bootstrap, paired_difference
from faceclip.towers.face import FaceViT
from makeup_plugin.identities import average_direction
from makeup_plugin.loading import load_pipeline
from makeup_plugin.pipeline import FaceMakeUpPipeline


@dataclass(frozen=True, kw_only=True)
class Person:
    """Rows of one person's portraits: those that an identity may be made of, and those that it is measured by."""

    identity: int
    references: NDArray[np.int64]
    held_out: NDArray[np.int64]


def choose_people(identity: NDArray[np.int64], *, people: int, most: int, seed: int) -> list[Person]:
    """Returns the first `people` persons with more than `most` portraits, each with `most` references drawn by `seed`.

    Raises ConfigError where there are not as many.
    """
    chosen: list[Person] = []
    for person in np.unique(identity):
        rows = np.flatnonzero(identity == person)
        if len(rows) > most and len(chosen) < people:
            order = np.random.default_rng([seed, int(person)]).permutation(rows)
            chosen.append(Person(identity=int(person), references=order[:most], held_out=np.sort(order[most:])))
    if len(chosen) < people:
        raise ConfigError(
            f"people={people}: the data have {len(chosen)} people with more than {most} portraits: ask for fewer"
        )
    return chosen


def subsets(references: NDArray[np.int64], count: int) -> Iterator[NDArray[np.int64]]:
    """Yields every reference in turn with its followers, so that each counts equally often; all of them once."""
    starts = len(references) if count < len(references) else 1
    for start in range(starts):
        yield np.roll(references, -start)[:count]


def averaged(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the direction (D,) of an identity made of unit embeddings at `rows`."""
    parts = torch.from_numpy(vectors[rows]).split(1)
    return torch.nn.functional.normalize(average_direction(parts, [1 / len(rows)] * len(rows)))[0].numpy()


def embedding_curve(
    vectors: NDArray[np.float32], people: list[Person], most: int
) -> dict[int, dict[str, NDArray[np.float64]]]:
    """Returns, by number of photos, one value per person: "similarity", the mean cosine to the person's held-out
    portraits, and "rank-1", the share of these that are nearer to the person than to all others. Ties are misses."""
    curve: dict[int, dict[str, NDArray[np.float64]]] = {}
    for count in range(1, most + 1):
        similarity = np.zeros(len(people))
        nearest = np.zeros(len(people))
        groups = [list(subsets(person.references, count)) for person in people]
        turns = len(groups[0])
        for turn in range(turns):
            gallery = np.stack([averaged(vectors, group[turn]) for group in groups])
            for index, person in enumerate(people):
                scores = vectors[person.held_out] @ gallery.T
                own = scores[:, index]
                others = np.delete(scores, index, axis=1).max(axis=1)
                similarity[index] += own.mean() / turns
                nearest[index] += (own > others).mean() / turns
        curve[count] = {"similarity": similarity, "rank-1": nearest}
    return curve


def picture_curve(
    pipeline: FaceMakeUpPipeline,
    judges: Judges,
    arrays: FaceArrays,
    people: list[Person],
    most: int,
    *,
    seed: int,
    steps: int | None,
) -> dict[int, dict[str, NDArray[np.float64]]]:
    """Returns, by number of photos, one value per person and recognizer: the mean cosine of a picture's face, as the
    detector finds it, to the person's held-out portraits. A picture without a face has 0.

    The prompt is the first caption of a held-out portrait; noise is the same for all numbers of photos.
    """
    faces = labelled_faces(arrays.landmarks_5)
    real = {name: embed_faces(embed, size, arrays.images, faces) for name, (embed, size) in judges.embedders().items()}
    curve: dict[int, dict[str, NDArray[np.float64]]] = {}
    for count in range(1, most + 1):
        drawn = []
        for person in people:
            rows = person.references[:count]
            landmarks = [np.asarray(arrays.landmarks_5[row]) for row in rows]
            identity = pipeline.encode_identity([np.array(arrays.images[row]) for row in rows], landmarks=landmarks)
            (picture,), _ = pipeline(
                arrays.captions[person.held_out[0]][0].text,
                identity=identity,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed + person.identity),
                return_dict=False,
            )
            drawn.append(np.asarray(picture))
        pictures = np.stack(drawn)
        found = detected_faces(pictures, label=f"faces of {count} photos")
        curve[count] = {}
        for name, (embed, size) in judges.embedders().items():
            vectors = embed_faces(embed, size, pictures, found)
            curve[count][f"similarity, {name}"] = np.array(
                [
                    float((real[name][person.held_out] @ vectors[index]).mean()) if found.found[index] else 0.0
                    for index, person in enumerate(people)
                ]
            )
    return curve


def summary(curve: Mapping[int, Mapping[str, NDArray[np.float64]]], people: list[Person]) -> dict[str, Estimate]:
    """Returns the curve with its intervals, and by how much each number of photos beats the one before."""
    identity = np.array([person.identity for person in people])
    figures = {}
    for count, values in curve.items():
        for name, value in values.items():
            figures[f"{name}, {count} photo{'s' * (count > 1)}"] = identity_bootstrap(value, identity)
            if count > 1:
                before = curve[count - 1][name]
                figures[f"{name}, {count} − {count - 1}"] = paired_difference(value, before, identity)
    return figures


@dataclass(kw_only=True)
class SeveralPhotosSettings:
    """Whose photos are averaged and who looks at the result."""

    data: Path = setting(help="data set whose test people are asked about")
    people: int = setting(100, "how many test people", least=2)
    most: int = setting(4, "the largest number of photos of a person", least=2)
    size: int = setting(128, "side of the portraits in px")
    seed: int = setting(0, "seed of the choice of photos, and of the noise of pictures", least=0, most=MAX_SEED)
    model: Path | None = setting(None, "saved pipeline that draws pictures of the identities")
    pictures: int = setting(20, "people of whom pictures are drawn, with --model", least=2)
    steps: int | None = setting(None, "sampler steps of these pictures; those of the model by default")
    recognizer: Path | None = setting(None, "another first recognizer than the shipped one")
    second_recognizer: Path | None = setting(None, "another second recognizer than the shipped one")
    judge: Path | None = setting(None, "another judge than the shipped one")
    out: Path | None = setting(None, "file that gets the figures as JSON")


def compare(settings: SeveralPhotosSettings) -> None:
    """Measures, prints the figures and writes them where asked to."""
    arrays = load_arrays(settings.data, "test", size=settings.size)
    people = choose_people(np.asarray(arrays.identity), people=settings.people, most=settings.most, seed=settings.seed)
    recognizer = load_model(FaceViT, settings.recognizer or weights.path("tiny/recognizer"), "--recognizer")
    judges = load_judges(recognizer, settings.judge, settings.second_recognizer)
    figures: dict[str, Estimate] = {}
    for name, (embed, size) in judges.embedders().items():
        vectors = embed_faces(embed, size, arrays.images, labelled_faces(arrays.landmarks_5))
        found = summary(embedding_curve(vectors, people, settings.most), people)
        figures |= {f"embeddings, {name}: {key}": value for key, value in found.items()}
    if settings.model:
        pipeline = load_pipeline(settings.model, device="cpu", progress=False)
        some = people[: settings.pictures]
        curve = picture_curve(pipeline, judges, arrays, some, settings.most, seed=settings.seed, steps=settings.steps)
        figures |= {f"pictures: {key}": value for key, value in summary(curve, some).items()}
    show_figures(figures, settings.out)


main = partial(run, compare, SeveralPhotosSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
