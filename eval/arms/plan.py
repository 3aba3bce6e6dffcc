"""Defines the arms, and plans their pictures: all arms draw the same people with the same prompts and noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from faceclip.errors import ConfigError, EmptyDatasetError
from faceclip.retrieval.labels import Labels
from faceclip.training.towers.labels import JUDGED


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The conditions of an arm. `counterpart` names the same arm without the shading channel."""

    name: str
    description: str
    reference: bool
    identity_scale: float = 0.0
    shading_scale: float = 0.0
    counterpart: str | None = None


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm(name="text", description="text only, no reference", reference=False),
        Arm(name="joint", description="text and face through the joint encoder", reference=True),
        Arm(name="identity", description="joint encoder and identity channel", reference=True, identity_scale=1.0),
        Arm(
            name="shading",
            description="joint encoder and shading channel",
            reference=True,
            shading_scale=1.0,
            counterpart="joint",
        ),
        Arm(
            name="all",
            description="joint encoder, identity and shading channel",
            reference=True,
            identity_scale=1.0,
            shading_scale=1.0,
            counterpart="identity",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to draw.

    reference: row of the reference portrait. names: attributes that the prompt names, with their values. seed: of the
    initial noise.
    """

    reference: int
    prompt: str
    names: Mapping[str, str]
    seed: int


def select_arms(names: str) -> list[Arm]:
    """Returns the arms of a comma-separated list. Raises ConfigError if it is empty or a name is unknown."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in ARMS]
    if unknown or not wanted:
        raise ConfigError(f"--arms {names}: choose among {', '.join(ARMS)}")
    return [ARMS[name] for name in dict.fromkeys(wanted)]


def plan_jobs(labels: Labels, count: int, *, seed: int = 0) -> list[Job]:
    """Plans `count` pictures, spread evenly over the people, as a function of labels and seed alone.

    The reference is a random portrait of the person. The prompt is a caption of somebody else's portrait. It names at
    least one judged attribute, and it names an expression only if the reference has that expression, because the
    shading channel shows the reference's face as it is.

    Raises ConfigError if `count` is below 1, and EmptyDatasetError if there are no other people or suitable captions.
    """
    generator = np.random.default_rng([seed, 77])
    people = np.unique(labels.identity)
    if count < 1:
        raise ConfigError(f"--images-per-arm must be at least 1, got {count}")
    jobs = []
    order = generator.permutation(people)
    for number in range(count):
        person = order[number % len(order)]
        reference = int(generator.choice(np.flatnonzero(labels.identity == person)))
        prompt, names = _draw_prompt(labels, person, reference, generator)
        jobs.append(Job(reference=reference, prompt=prompt, names=names, seed=seed * 1_000_003 + number))
    return jobs


def _draw_prompt(
    labels: Labels, person: int, reference: int, generator: np.random.Generator
) -> tuple[str, Mapping[str, str]]:
    others = np.flatnonzero(labels.identity != person)
    if not len(others):
        raise EmptyDatasetError("prompts come from other people's captions: the test split needs two identities")
    expression = labels.attributes["expression"][reference] if "expression" in labels.attributes else None
    for _ in range(1000):
        candidates = [
            item
            for item in labels.descriptions[int(generator.choice(others))]
            if item.kind != "emotion"
            and set(item.names) & set(JUDGED)
            and item.names.get("expression", expression) == expression
        ]
        if candidates:
            chosen = candidates[int(generator.integers(len(candidates)))]
            return chosen.text, chosen.names
    raise EmptyDatasetError("no caption of the test split names any of " + ", ".join(JUDGED))


def first_people(jobs: Sequence[Job], identity: NDArray[np.integer], count: int = 8) -> list[int]:
    """Returns the number of the first job of each of the plan's first `count` people. identity (N,): of the
    portraits."""
    first: dict[int, int] = {}
    for number, job in enumerate(jobs):
        first.setdefault(int(identity[job.reference]), number)
    return list(first.values())[:count]


def batches(jobs: Sequence[int], size: int) -> list[list[int]]:
    """Splits the numbers of jobs into lists of at most `size`."""
    return [list(jobs[start : start + size]) for start in range(0, len(jobs), size)]
