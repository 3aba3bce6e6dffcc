"""Writing a synthetic data set: parallel, deterministic, resumable, never half a file."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from faceclip.data.records import SPLITS, VOCABULARIES, features
from faceclip.data.worker_pool import WorkerPool
from faceclip.data.writing import write_shard
from faceclip.errors import DataError
from faceclip.people.card import write_card, write_contact_sheet
from faceclip.people.plan import Request, Shard, check_same_request, plan_shards
from faceclip.storage.files import read_json, write_json, write_text
from faceclip.storage.hashes import file_hash
from faceclip.storage.locks import locked
from faceclip.storage.places import check_place

_RENDERER: Any = None  # one per worker process


def generate(directory: Path, request: Request, *, workers: int, quiet: bool = False) -> dict:
    """Generates what is missing of a data set and describes it; returns the content of ``dataset.json``.

    The files are a function of the request alone, whatever `workers` is and however often it was interrupted.
    Shards that are whole stay; lost, truncated and changed ones are made again. Raises `ConfigError` when the folder
    holds another data set, `DataError` when it cannot be written (full disk), is being written by another process, or
    a worker died. After any of them, and after a kill, the same call resumes.
    """
    check_place(directory, "--out ", (".lock", "request.json", "dataset.json"))
    try:
        (directory / "data").mkdir(parents=True, exist_ok=True)
        with locked(directory / ".lock", wait=False):
            return _generate(directory, request, workers, quiet)
    except BrokenProcessPool as error:
        raise DataError(
            f"a worker process of {directory} died, often for want of memory: run again, with fewer --workers if it "
            "was that; finished shards are kept"
        ) from error
    except OSError as error:
        raise DataError(
            f"{directory} cannot be written ({error}): free space or make it writable, and run again; finished shards "
            "are kept"
        ) from error


def _generate(directory: Path, request: Request, workers: int, quiet: bool) -> dict:
    check_same_request(directory, request)
    for leftover in (*directory.glob(".*.tmp"), *directory.glob("data/*.tmp")):
        leftover.unlink()  # of a killed process: the lock says that no other one is writing
    write_json(directory / "request.json", request.to_dict(), sort_keys=False)
    shards = plan_shards(request)
    described = directory / "dataset.json"
    summary = read_json(described) if described.is_file() else None
    hashes = {item["path"]: item["sha256"] for item in summary["files"]} if summary else {}
    missing = [shard for shard in shards if not _is_complete(directory, shard, request, hashes.get(shard.path))]
    if not missing and summary is not None:
        return summary
    # First what is damaged, then the hashes that tell: a kill in between forgets nothing. dataset.json is written last,
    # so that wherever it is, it describes the files that are there.
    for shard in missing:
        (directory / shard.path).unlink(missing_ok=True)
    described.unlink(missing_ok=True)
    if missing:
        _render_shards(directory, request, missing, len(shards), workers, quiet)
    return _describe(directory, request, shards)


def render_person(request: Request, index: int) -> list[Mapping[str, Any]]:
    """Renders all rows of one identity. Runs in a worker process."""
    from faceclip.people.framing import framed
    from faceclip.people.render import PortraitRenderer
    from faceclip.people.rows import make_row
    from faceclip.people.sample import sample_identity, sample_scene

    global _RENDERER
    if _RENDERER is None:
        _RENDERER = PortraitRenderer()
    identity = sample_identity(request.seed, index)
    rows = []
    for number in range(request.images_per_identity):
        scene = framed(identity, sample_scene(request.seed, index, number), request.framing, _RENDERER.model)
        portrait = _RENDERER.render(identity, scene, request.size)
        rows.append(make_row(identity, scene, portrait, seed=request.seed, image_index=number))
    return rows


def _render_shards(
    directory: Path, request: Request, missing: list[Shard], total: int, workers: int, quiet: bool
) -> None:
    schema = features().arrow_schema
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    images = sum(shard.last - shard.first for shard in missing) * request.images_per_identity
    with Progress(*columns, disable=quiet) as progress:
        task = progress.add_task(f"portraits ({len(missing)} of {total} shards)", total=images, rate="")
        began, done = time.monotonic(), 0
        people = _people(request, missing, workers)
        for shard in missing:
            rows: list[Mapping[str, Any]] = []
            for _ in range(shard.first, shard.last):
                rows += next(people)
                done += request.images_per_identity
                rate = done / (time.monotonic() - began)
                progress.update(task, completed=done, rate=f"{rate:.1f} images/s")
            write_shard(directory / shard.path, pa.Table.from_pylist(rows, schema=schema))


def _people(request: Request, shards: list[Shard], workers: int) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Yields the rows of every identity of the shards, in order, rendered by `workers` processes some people ahead."""
    order = [index for shard in shards for index in range(shard.first, shard.last)]
    if workers <= 1:
        for index in order:
            yield render_person(request, index)
        return
    with WorkerPool(workers, _prepare_worker) as pool:
        waiting: list[Future] = []
        ahead = workers * 3
        try:
            for index in order:
                waiting.append(pool.submit(render_person, request, index))
                if len(waiting) >= ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _prepare_worker() -> None:
    import torch

    # The processes are the parallelism.
    torch.set_num_threads(1)
    os.environ["NUMBA_NUM_THREADS"] = "1"


def _is_complete(directory: Path, shard: Shard, request: Request, expected_hash: str | None) -> bool:
    """Returns whether the shard is there, in place and whole, by its footer and its hash."""
    path = directory / shard.path
    if not path.is_file():
        return False
    try:
        rows = pq.ParquetFile(path).metadata.num_rows
    except (pa.ArrowException, OSError):
        return False
    if rows != (shard.last - shard.first) * request.images_per_identity:
        return False
    return expected_hash is None or file_hash(path) == expected_hash


def _describe(directory: Path, request: Request, shards: list[Shard]) -> dict:
    """Writes the card, the contact sheet and, last, dataset.json."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in VOCABULARIES}
    images = dict.fromkeys(SPLITS, 0)
    files = []
    for shard in shards:
        table = pq.read_table(directory / shard.path, columns=["attributes"])
        images[shard.split] += table.num_rows
        for attributes in table["attributes"].to_pylist():
            for name, value in attributes.items():
                counts[name][value] += 1
        files.append({"path": shard.path, "rows": table.num_rows, "sha256": file_hash(directory / shard.path)})
    if sum(images.values()) == 0:
        raise DataError(f"{directory} has no portraits")
    summary = {
        **request.to_dict(),
        "counts": {
            split: {"identities": people, "images": images[split]}
            for split, people in zip(SPLITS, request.people, strict=True)
        },
        "attributes": {name: {value: counts[name][value] for value in values} for name, values in VOCABULARIES.items()},
        "files": files,
    }
    write_contact_sheet(directory / "contact_sheet.png", directory / shards[0].path)
    write_text(directory / "README.md", f"{write_card(summary)}\n")
    write_json(directory / "dataset.json", summary, sort_keys=False)
    return summary
