"""How much of the identity stays when the reference photo is damaged or attacked.

    python -m eval.robustness --photos DIR --licence TEXT --origin TEXT --out DIR
    python -m eval.robustness --data DIR --recognizers tiny/recognizer,shipped --model EXPORT --out DIR

Photos are in the layout PERSON/PHOTO.jpg. Attacks are made on the first recognizer and measured by all of them.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.arguments import MAX_SEED, REPORT, load_model, use_threads
from eval.benchmark.panel import load_recognizer
from eval.benchmark.references import photo_files, read_photos, read_renders
from eval.reports.report import write_json
from eval.robustness.attacks import check_differentiable
from eval.robustness.damages import DAMAGES
from eval.robustness.measure import CLEAN, Condition, Kept, Yardstick, apply, conditions, subjects_of
from eval.robustness.page import make_report
from eval.robustness.pictures import draw_from, likeness
from eval.terms import data_terms
from faceclip.encoder import FaceCLIP
from faceclip.errors import ConfigError
from faceclip.settings import run, setting
from faceclip.statistics import Estimate
from faceclip.storage.hashes import module_hash
from faceclip.towers.placement import named_device
from faceclip.training.checkpoints import make_folder
from makeup_plugin.loading import load_pipeline

JOINT = "joint:"


@dataclass(kw_only=True)
class RobustnessSettings:
    """Whose photos are damaged, and who recognizes them."""

    photos: Path | None = setting(None, "folder PERSON/PHOTO.jpg")
    data: Path | None = setting(None, "data set of renders, in place of photos")
    out: Path = setting(help="receives results.json and report.html")
    recognizers: str = setting(
        "dlib,shipped",
        "comma-separated: towers (dlib, onnx:FILE, tiny/recognizer, a folder), shipped, or joint:EXPORT, the joint "
        "embedding of a face without text",
    )
    people: int = setting(50, "at most so many persons", least=2)
    each: int = setting(3, "photos of each: the reference, and others in the gallery", least=2)
    damages: str = setting(",".join(name.partition(",")[0] for name in DAMAGES), "comma-separated kinds of damage")
    attacks: str = setting("2,4,8", "whole levels of 255 that FGSM and PGD may move a pixel; empty: no attack")
    steps: int = setting(10, "of PGD", least=1)
    model: str = setting("", "pipeline that draws from damaged references; empty: none", path=True)
    pictures: int = setting(20, "persons of whom it draws, once per kind of damage and attack", least=1)
    sampler_steps: int | None = setting(None, "of the pipeline; by default those that suit the model")
    licence: str = setting("", "of the photos; required with --photos")
    origin: str = setting("", "of the photos; required with --photos")
    seed: int = setting(0, "of attacks and pictures", least=0, most=MAX_SEED)
    device: str = setting("cpu", "of the pipeline, as cuda")
    threads: int | None = setting(None, "torch threads", least=1)
    kinds: tuple[str, ...] = field(init=False, default=())
    levels: tuple[int, ...] = field(init=False, default=())  # growing

    def __post_init__(self) -> None:
        if (self.photos is None) == (self.data is None):
            raise ConfigError("--photos or --data: give one of them")
        known = {name.partition(",")[0]: name for name in DAMAGES}
        words = [word.strip() for word in self.damages.split(",") if word.strip()]
        if unknown := [word for word in words if word not in known]:
            raise ConfigError(f"--damages: {unknown[0]!r} is none of {', '.join(known)}")
        self.kinds = tuple(known[word] for word in words)
        try:
            self.levels = tuple(sorted(int(word) for word in self.attacks.split(",") if word.strip()))
        except ValueError as error:
            raise ConfigError(f"--attacks: whole numbers with commas are expected, got {self.attacks!r}") from error
        if any(not 0 < level < 255 for level in self.levels):
            raise ConfigError(f"--attacks: levels lie between 0 and 255, got {self.attacks!r}")
        if not [name for name in self.recognizers.split(",") if name.strip()]:
            raise ConfigError("--recognizers: name at least one, as in --recognizers dlib")


def load_any_recognizer(place: str) -> tuple[tuple[Callable[[Tensor], Tensor], int], dict]:
    """Loads a recognizer as `load_recognizer` takes it, or the joint embedding of a face of an export of stage 1."""
    if not place.startswith(JOINT):
        found, facts = load_recognizer(place)
        return found, facts.to_dict()
    folder = Path(place.removeprefix(JOINT))
    encoder = load_model(FaceCLIP, folder, "--recognizers")
    if encoder.heads is None:
        raise ConfigError(f"--recognizers: {folder} has no joint heads: give an export of `python -m train_encoder`")

    def embed(crops: Tensor) -> Tensor:
        return encoder.embed([""] * len(crops), face_features=encoder.face_features(crops)).joint

    facts = {"id": place, "sha256": module_hash(encoder), "preprocessing": "RGB in [0, 1], aligned by five points"}
    return (embed, int(encoder.face_encoder.config.image_size)), facts


def drawn_conditions(wanted: list[Condition]) -> list[Condition]:
    """Returns the strongest condition of each kind, which is its last one: a pipeline draws from these."""
    return list({condition.name: condition for condition in wanted}.values())


def measure(settings: RobustnessSettings) -> None:
    """Measures, writes results and report, and prints the figures."""
    use_threads(settings.threads)
    named_device(settings.device, "--device")
    terms = data_terms(settings.data is not None, settings.licence, settings.origin)
    names = [name.strip() for name in settings.recognizers.split(",") if name.strip()]
    recognizers, facts = {}, {}
    for name in names:
        recognizers[name], facts[name] = load_any_recognizer(name)
    if settings.levels:
        check_differentiable(*recognizers[names[0]], names[0])
    if settings.photos is not None:
        files = photo_files(settings.photos, by_person=True, people=settings.people)
        references = read_photos(files, each=settings.each)
    else:
        assert settings.data is not None  # checked by the settings
        references = read_renders(settings.data, "test", people=settings.people, each=settings.each, size=None)
    subjects = subjects_of(references)
    pipeline: Any = None
    if settings.model:
        pipeline = load_pipeline(settings.model, device=settings.device, progress=False)
    make_folder(settings.out, "--out ", REPORT)
    yardstick = Yardstick(recognizers, subjects)
    wanted = conditions(settings.kinds, settings.levels)
    strongest = drawn_conditions(wanted)
    kept: list[Kept] = []
    drawn: dict[Condition, dict[str, Estimate]] = {}
    for condition in wanted:
        pictures = apply(condition, subjects, recognizers[names[0]], steps=settings.steps, seed=settings.seed)
        found = yardstick.measure(condition, pictures)
        kept += found
        for item in found:
            print(_line(item))
        if pipeline is not None and condition in strongest:
            count = settings.pictures
            made = draw_from(pipeline, pictures[:count], steps=settings.sampler_steps, seed=settings.seed)
            drawn[condition] = likeness(made, {n: v[:count] for n, v in yardstick.clean.items()}, recognizers)
    data = {**terms, "persons": len(subjects.images), "gallery": len(subjects.gallery)}
    content = {
        "data": data,
        "recognizers": facts,
        "attacked": names[0] if settings.levels else None,
        "model": settings.model or None,
        "PGD steps": settings.steps,
        "seed": settings.seed,
        "kept": [_plain(item) for item in kept],
        "pictures": [{"condition": condition, "facesim/all@1": found} for condition, found in drawn.items()],
    }
    write_json(settings.out / "results.json", content)
    path = make_report(data, kept, drawn, names, names[0] if settings.levels else "").write(
        settings.out / "report.html"
    )
    print(f"report: {path}")


def _plain(item: Kept) -> dict:
    return {
        "condition": item.condition,
        "recognizer": item.recognizer,
        "detection": item.detection,
        "cosine": item.cosine,
        "rank-1": item.rank_1,
    }


def _line(item: Kept) -> str:
    where = CLEAN if item.condition.name == CLEAN else f"{item.condition.name} {item.condition.strength:g}"
    cosine = "no face" if item.cosine is None else f"cosine {item.cosine}"
    return f"{where:<28} {item.recognizer:<18} {cosine}  rank-1 {item.rank_1}  face {item.detection.value:.3f}"


main = partial(run, measure, RobustnessSettings, flags=True)

if __name__ == "__main__":
    sys.exit(main())
