"""A suite: references, prompts, pictures per pair, seeds and size, from a YAML file; and the jobs that follow."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eval.benchmark.references import (
    References,
    photo_files,
    read_groups,
    read_photos,
    read_renders,
)
from eval.judges.base import judged_prompts
from eval.metrics.registry import find
from eval.terms import check_terms
from faceclip.data.arrays import load_arrays
from faceclip.errors import ConfigError, DataError, EmptyDatasetError
from faceclip.settings import check_bounds, load_config, setting
from faceclip.storage.hashes import bytes_hash
from faceclip.storage.regular import read_regular
from faceclip.training.towers.labels import JUDGED

SYNTHETIC = "synthetic"
LONGEST_PROMPT = 2000  # characters


@dataclass(kw_only=True)
class ReferenceSettings:
    """Which photos. kind: photos (FOLDER/PERSON/FILE), portraits (FOLDER/FILE, each a person of its own: the layout of
    Unsplash-50), or data (a data set of renders)."""

    kind: Literal["photos", "portraits", "data"] = setting("photos", "layout of the folder")
    folder: Path = setting(help="folder of photos, or of a data set")
    split: Literal["train", "validation", "test"] = setting("test", "of a data set")
    people: int | None = setting(None, "at most so many persons")
    photos: int = setting(4, "at most so many photos of each; the first is the reference", least=1)
    groups: Path | None = setting(None, "CSV: person and columns of groups, for slices")


@dataclass(kw_only=True)
class PromptSettings:
    """Which prompts. A file has one prompt per line, or CATEGORY<tab>PROMPT; without one, renders are drawn with
    captions of the data set that name what the judge can see."""

    file: Path | None = setting(None, "text file of prompts")
    captions: int = setting(8, "of the data set, where there is no file")
    per_reference: int = setting(0, "prompts of each reference, taking turns; 0: every prompt")


@dataclass(kw_only=True)
class SuiteSettings:
    """SUITE.yaml."""

    name: str = setting(help="of the suite, as it stands in reports")
    licence: str = setting("", "of the reference pictures; required")
    origin: str = setting("", "where the reference pictures come from; required")
    references: ReferenceSettings
    prompts: PromptSettings = field(default_factory=PromptSettings)
    pictures: int = setting(1, "per pair of reference and prompt", least=1)
    seed: int = setting(0, "the first; picture n of every method has the same seed", least=0, below=2**32)
    size: tuple[int, int] = setting((128, 128), "height and width in px", least=8, most=4096)
    failures: float = setting(0.1, "share of a method's pictures that may fail before the run stops", least=0, below=1)
    metrics: list[str] = setting(factory=list, help="names of the registry; none: all")
    recognizers: dict[str, str] = setting(
        factory=lambda: {"recognizer": "tiny/recognizer", "second recognizer": "shipped"},
        help="name → tower, file, or `shipped` for the second recognizer of this package",
    )
    models: dict[str, str] = setting(factory=dict, help="role → folder, file or hub id; see docs/metrics.md")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_bounds(self.references, "references.")
        for name in self.metrics:
            find(name)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt with its category ("" for none) and the attribute values that it is known to name."""

    text: str
    category: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture of every method. reference: row among the photos; number: of the picture within the pair."""

    key: str
    reference: int
    prompt: int
    number: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What all methods draw. empty_lines: of the prompts file."""

    settings: SuiteSettings
    references: References
    prompts: tuple[Prompt, ...]
    jobs: tuple[Job, ...]
    empty_lines: int = 0

    @property
    def plan_hash(self) -> str:
        """SHA-256 of everything that decides what is drawn."""
        facts = (self.references.content_hash, self.prompts, self.jobs, self.settings.size)
        return bytes_hash(repr(facts).encode())


def read_suite(path: Path) -> Suite:
    """Reads the suite from a YAML file. Paths in it are relative to the file's folder.

    Raises ConfigError naming the key, DataError, EmptyDatasetError and face errors for what it names.
    """
    settings = load_config(SuiteSettings, path)
    root = path.parent
    settings.references.folder = root / settings.references.folder
    for part, name in ((settings.references, "groups"), (settings.prompts, "file")):
        if getattr(part, name) is not None:
            setattr(part, name, root / getattr(part, name))
    return build_suite(settings)


def build_suite(settings: SuiteSettings) -> Suite:
    """Makes the suite of settings; see `read_suite`."""
    check_terms(settings.licence, settings.origin)
    wanted = settings.references
    empty = 0
    prompts: list[Prompt] = []
    if settings.prompts.file is not None:
        prompts, empty = read_prompts(settings.prompts.file)
    if wanted.kind == "data":
        side = settings.size[0] if settings.size[0] == settings.size[1] else None
        references = read_renders(wanted.folder, wanted.split, people=wanted.people, each=wanted.photos, size=side)
        prompts = prompts or caption_prompts(wanted.folder, wanted.split, settings.prompts.captions)
    else:
        if not prompts:
            raise ConfigError("prompts.file: photographs need a file of prompts, one per line")
        groups = read_groups(wanted.groups) if wanted.groups is not None else None
        files = photo_files(wanted.folder, by_person=wanted.kind == "photos", people=wanted.people)
        references = read_photos(files, each=wanted.photos, groups=groups)
    jobs = plan_jobs(references, len(prompts), settings)
    return Suite(settings=settings, references=references, prompts=tuple(prompts), jobs=tuple(jobs), empty_lines=empty)


def read_prompts(path: Path) -> tuple[list[Prompt], int]:
    """Returns the prompts of a file and the number of empty lines, which are skipped.

    Raises DataError for a file that cannot be read or has a prompt that is too long, EmptyDatasetError for one without
    a prompt.
    """
    try:
        lines = read_regular(path).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompts.file: {path} cannot be read as text ({error})") from error
    prompts = []
    for number, line in enumerate(lines, start=1):
        category, tab, text = line.partition("\t")
        text, category = (text.strip(), category.strip()) if tab else (line.strip(), "")
        if len(text) > LONGEST_PROMPT:
            raise DataError(f"{path}, line {number}: {len(text):,} characters, a prompt has at most {LONGEST_PROMPT:,}")
        if text:
            prompts.append(Prompt(text=text, category=category))
    if not prompts:
        raise EmptyDatasetError(f"prompts.file: {path} has no prompt; write one per line")
    return prompts, len(lines) - len(prompts)


def caption_prompts(folder: Path, split: str, count: int) -> list[Prompt]:
    """Returns captions of a data set of renders that name judged attributes, with what they name."""
    texts, wanted, _ = judged_prompts(load_arrays(folder, split), count)
    found = {
        text: Prompt(text=text, names={name: value for name, value in names.items() if name in JUDGED})
        for text, names in zip(texts, wanted, strict=True)
    }
    if not found:
        raise EmptyDatasetError(f"{folder}: no caption names any of {', '.join(JUDGED)}; give prompts.file")
    return list(found.values())


def plan_jobs(references: References, prompts: int, settings: SuiteSettings) -> list[Job]:
    """Returns the pictures of every method, in the order in which they are drawn: a function of the suite alone."""
    each = min(settings.prompts.per_reference or prompts, prompts)
    jobs: list[Job] = []
    for place, row in enumerate(references.chosen):
        for turn in range(each):
            prompt = (place * each + turn) % prompts if each < prompts else turn
            for number in range(settings.pictures):
                jobs.append(
                    Job(
                        key=f"{references.photos[row].key}--{prompt:03d}--{number:02d}",
                        reference=row,
                        prompt=prompt,
                        number=number,
                        seed=(settings.seed * 1_000_003 + len(jobs)) % 2**32,
                    )
                )
    return jobs
