"""The suite that needs no further data: renders made for it, their captions, and the shipped models as methods."""

from dataclasses import dataclass
from pathlib import Path

from eval.benchmark.methods import MethodSettings
from eval.benchmark.suite import PromptSettings, ReferenceSettings, Suite, SuiteSettings, build_suite
from faceclip.people.generate import generate
from faceclip.people.plan import Request

PHOTOS = 4  # of each person
WORLD = 90_000  # seeds of people from here on are of nobody's training
SIDE = 128  # px of the renders, and of pictures whose method draws others


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings:
    """How large the suite is: persons, captions per person, pictures per pair, and the seed of all."""

    people: int = 40
    prompts: int = 4
    pictures: int = 1
    seed: int = 0


def synthetic_suite(folder: Path, settings: SyntheticSettings) -> Suite:
    """Renders the people into a folder, or resumes a folder that was begun, and makes the suite.

    Raises ConfigError for a folder that holds other people, DataError when it cannot be written.
    """
    request = Request(
        identities=settings.people,
        images_per_identity=PHOTOS,
        size=SIDE,
        seed=WORLD + settings.seed,
        splits=(0, 0, settings.people),
        framing="head",
    )
    generate(folder, request, workers=1)
    return build_suite(
        SuiteSettings(
            name="synthetic",
            licence="CC0-1.0",
            origin="rendered by faceclip.people",
            references=ReferenceSettings(kind="data", folder=folder, split="test", photos=PHOTOS),
            prompts=PromptSettings(captions=4 * settings.prompts, per_reference=settings.prompts),
            pictures=settings.pictures,
            seed=settings.seed,
            size=(SIDE, SIDE),
        )
    )


def synthetic_methods() -> list[MethodSettings]:
    """Returns the shipped pipeline, with and without its channels and without a face, and real portraits."""
    return [
        MethodSettings(name="shipped pipeline", kind="pipeline"),
        MethodSettings(name="joint encoder alone", kind="pipeline", identity_scale=0.0, shading_scale=0.0),
        MethodSettings(name="no identity", kind="plain"),
        MethodSettings(name="real: another portrait", kind="real"),
        MethodSettings(name="real: a stranger", kind="stranger"),
    ]
