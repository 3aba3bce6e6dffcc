"""Draws the pictures of all methods: resumable after a kill, shared by several processes, failures recorded.

    OUT/run.json, plan.json               what is drawn; another suite or another model in the same folder is refused
    OUT/pictures/METHOD/JOB.png, .json    each picture and its record; the record comes last and says that it is whole
    OUT/locks/                            one lock per block of jobs; a lock dies with its process

Every picture is drawn alone with its own seed, so that it does not depend on who draws it, on what was drawn before,
or on how often the run was interrupted.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eval.benchmark.methods import Method, MethodSettings
from eval.benchmark.references import safe
from eval.benchmark.suite import Job, Suite
from eval.reports.report import write_json
from faceclip.errors import ConfigError, DataError, TooManyBadRecordsError
from faceclip.storage.hashes import file_hash
from faceclip.storage.locks import locked
from faceclip.storage.regular import parse_json, read_regular
from faceclip.training.accelerators import memory_gib
from makeup_plugin.marking.provenance import save_image

BLOCK = 8  # jobs that one process takes at a time


class _HeldError(DataError):
    """Another process draws this block."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a picture. status: drawn, failed (with `error`), or none (there is no such picture)."""

    job: str
    status: str
    sha256: str = ""
    seconds: float = 0.0
    memory_mib: float = 0.0
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All pictures of a method in the order of the jobs: (N, H, W, 3), black where there is none, and their records."""

    images: NDArray[np.uint8]
    records: tuple[Record, ...]

    @property
    def drawn(self) -> NDArray[np.bool_]:
        return np.array([record.status == "drawn" for record in self.records])

    @property
    def applies(self) -> NDArray[np.bool_]:
        """Where a picture was asked for, drawn or failed."""
        return np.array([record.status != "none" for record in self.records])


def folder_of(out: Path, method: str) -> Path:
    return out / "pictures" / safe(method)


def claim(out: Path, suite: Suite, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes which run the folder holds, or checks that it holds the same run. Several processes may claim one folder.

    A folder may get further methods; a method of the same name must be the same. Raises ConfigError, which
    names the difference.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "run.json"
    now: dict[str, Any] = {"suite": suite.settings.name, "plan": suite.plan_hash, "methods": dict(methods)}
    with locked(out / ".claim.lock"):
        if not path.is_file() and (out / "pictures").exists():
            raise ConfigError(
                f"--out {out}: holds pictures without run.json, which says what they are: name another folder"
            )
        if path.is_file():
            stored = read_run(path)
            if (stored["suite"], stored["plan"]) != (now["suite"], now["plan"]):
                raise ConfigError(
                    f"--out {out}: holds pictures of another suite, or of other references: name another folder"
                )
            for name, facts in stored["methods"].items():
                if name in now["methods"] and json.loads(json.dumps(now["methods"][name], default=str)) != facts:
                    raise ConfigError(f"--out {out}: method {name} was drawn with other settings: name it otherwise")
            now["methods"] = stored["methods"] | now["methods"]
        write_json(path, json.loads(json.dumps(now, default=str)))
        plan = [
            {
                "job": job.key,
                "person": suite.references.photos[job.reference].person,
                "reference": suite.references.photos[job.reference].key,
                "prompt": suite.prompts[job.prompt].text,
                "category": suite.prompts[job.prompt].category,
                "number": job.number,
                "seed": job.seed,
            }
            for job in suite.jobs
        ]
        write_json(out / "plan.json", {"size": list(suite.settings.size), "jobs": plan})


def read_run(path: Path) -> dict[str, Any]:
    """Returns the content of run.json. Raises ConfigError for a damaged file."""
    try:
        content = parse_json(read_regular(path, 2**28))
        return {"suite": content["suite"], "plan": content["plan"], "methods": dict(content["methods"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): choose another --out, or remove the folder") from error


def draw_all(
    out: Path,
    suite: Suite,
    settings: MethodSettings,
    load: Callable[[], Method],
    *,
    progress: Callable[[int], None] | None = None,
    retry: bool = False,
) -> None:
    """Draws what is missing of one method. Blocks that another process holds are waited for at the end, and what a
    killed process left is drawn then.

    load: gives the method, called only if something is missing. retry: draws failed pictures again. Raises
    TooManyBadRecordsError once more than the suite's share of the pictures have failed.
    """
    folder = folder_of(out, settings.name)
    folder.mkdir(parents=True, exist_ok=True)
    (out / "locks").mkdir(exist_ok=True)
    blocks = [suite.jobs[start : start + BLOCK] for start in range(0, len(suite.jobs), BLOCK)]
    method: Method | None = None
    left = list(enumerate(blocks))
    for wait in (False, True):
        held = []
        for number, block in left:
            try:
                if not all(_is_done(folder, job, retry) for job in block):
                    lock = out / "locks" / f"{safe(settings.name)}-{number:05d}.lock"
                    with locked(lock, wait=wait, kind=_HeldError):
                        for job in block:
                            if not _is_done(folder, job, retry):
                                method = method or load()
                                _draw(folder, method, job)
                                _check_share(folder, suite, settings.name, job)
                if progress is not None:
                    progress(len(block))
            except _HeldError:
                held.append((number, block))
        left, retry = held, False  # the second round waits for others


def gallery(out: Path, suite: Suite, method: str) -> Gallery:
    """Returns the pictures of a method. Raises DataError for one that is missing or was changed."""
    folder = folder_of(out, method)
    height, width = suite.settings.size
    images = np.zeros((len(suite.jobs), height, width, 3), np.uint8)
    records = []
    for row, job in enumerate(suite.jobs):
        record = _read_record(folder, job)
        if record is None:
            raise DataError(f"{folder / job.key}.json is missing or damaged: run the same command again")
        records.append(record)
        if record.status == "drawn":
            path = folder / f"{job.key}.png"
            if not path.is_file() or file_hash(path) != record.sha256:
                raise DataError(f"{path} is not the picture that was drawn: delete its record, and run again")
            with Image.open(path) as image:
                images[row] = np.asarray(image.convert("RGB"))
    return Gallery(images=images, records=tuple(records))


def _is_done(folder: Path, job: Job, retry: bool) -> bool:
    record = _read_record(folder, job)
    if record is None or (retry and record.status == "failed"):
        return False
    path = folder / f"{job.key}.png"
    return record.status != "drawn" or (path.is_file() and file_hash(path) == record.sha256)


def _read_record(folder: Path, job: Job) -> Record | None:
    """Returns None where there is no whole record."""
    try:
        return Record(**parse_json(read_regular(folder / f"{job.key}.json")))
    except (OSError, ValueError, TypeError):
        return None


def _draw(folder: Path, method: Method, job: Job) -> None:
    path = folder / f"{job.key}.png"
    if not method.applies(job):
        write_json(folder / f"{job.key}.json", Record(job=job.key, status="none"))
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        drawn = method.draw(job)
    # A peer may raise anything; one picture that fails must not end a run of days. Ctrl-C and SystemExit pass.
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        write_json(folder / f"{job.key}.json", Record(job=job.key, status="failed", error=text))
        return
    seconds = time.perf_counter() - began
    memory = 1024 * memory_gib(device)
    save_image(Image.fromarray(drawn.image), path, drawn.provenance)
    record = Record(
        job=job.key, status="drawn", sha256=file_hash(path), seconds=round(seconds, 4), memory_mib=round(memory, 1)
    )
    write_json(folder / f"{job.key}.json", record)


def _check_share(folder: Path, suite: Suite, name: str, last: Job) -> None:
    record = _read_record(folder, last)
    if record is None or record.status != "failed":
        return
    records = [record for job in suite.jobs if (record := _read_record(folder, job)) is not None]
    failed = [record for record in records if record.status == "failed"]
    if len(failed) > suite.settings.failures * len(suite.jobs):
        raise TooManyBadRecordsError(
            f"method {name} failed on {len(failed)} of {len(suite.jobs)} pictures, more than failures="
            f"{suite.settings.failures:g} allows; the last: {failed[-1].error}. Mend it and run again with --retry, or "
            "allow more in the suite"
        )


def failures(records: Sequence[Record]) -> dict[str, int]:
    """Returns the number of failures with each error, the most frequent first."""
    return dict(Counter(record.error for record in records if record.status == "failed").most_common())
