"""Curates a data set of any size: measures every picture, applies thresholds, writes the kept rows and a report.

    python -m faceclip.data.curate data.path=PHOTOS out=DIR [keep.min_side=256 …] [backend=processes data.workers=8]

The command takes any source that `data.path` takes (docs/data.md). Run again, it resumes where it was killed; with
other `keep.` settings it reuses all figures. Other commands read DIR by their `data.path`, and DIR/report.html
shows what was dropped and why.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from faceclip.data.curate.card import data_card
from faceclip.data.curate.config import CurateConfig
from faceclip.data.curate.deciding import decide
from faceclip.data.curate.measuring import REQUEST, Measuring
from faceclip.data.curate.output import Output
from faceclip.data.curate.pairs import find_pairs
from faceclip.data.curate.report import Thumbnails, write_report
from faceclip.data.curate.rules import overlaps
from faceclip.data.curate.source import SplitReader
from faceclip.data.rejects import RejectCounts
from faceclip.settings import run
from faceclip.storage.files import disk_errors, read_json, replacing, write_json, write_text
from faceclip.storage.locks import locked
from faceclip.storage.places import check_place

SUMMARY, PAIRS = "curation.json", "pairs.parquet"


def curate(config: CurateConfig) -> dict[str, Any]:
    """Measures the missing shards, decides, and writes the results; returns the content of curation.json.

    Raises ConfigError if settings contradict each other or the folder's earlier run, MissingExtraError if a package
    is missing, and DataError for unreadable sources, damaged shards and full disks. Finished shards are kept.
    """
    out = Path(config.out)
    config.data.check_outside(out)
    check_place(out, "out=", (".lock", REQUEST))
    with ExitStack() as stack:
        with disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(out / ".lock", wait=False))
        return _curate(config, out)


def _curate(config: CurateConfig, out: Path) -> dict[str, Any]:
    readers = {split: SplitReader(config.data, split, out / ".digests.json", out) for split in config.splits}
    if config.pictures == "paths":
        for reader in readers.values():
            reader.check_paths()
    measuring = Measuring(config, readers)
    splits = measuring.run()
    decision = decide(splits, measuring.schema, config.keep)
    output = Output(config, splits, decision)
    thumbnails = Thumbnails(splits, decision, config.thumbnails)
    with disk_errors(out):
        # While the folder holds two states, it says of neither that it is complete.
        (out / SUMMARY).unlink(missing_ok=True)
    kept, pictures = output.write(readers, thumbnails.wanted)
    pairs = find_pairs(splits, decision, config.pairs) if "embedding" in measuring.schema.names else None
    with disk_errors(out / PAIRS):
        if pairs is None:
            (out / PAIRS).unlink(missing_ok=True)
        else:
            with replacing(out / PAIRS, alone=True) as file:
                pq.write_table(pairs.table, file, compression="zstd")
    rejected = RejectCounts()
    for shards in splits:
        for number in range(shards.count):
            rejected.merge(shards.manifest(number))
    summary = {
        "source": {"name": config.data.name, "revision": config.data.revision, "licence": config.licence},
        "rows": {shards.split: sum(shards.manifest(n)["rows"] for n in range(shards.count)) for shards in splits},
        "kept": kept,
        "dropped": decision.counts(),
        "unmeasured": rejected.counts,
        "keep": asdict(config.keep),
        "measures": read_json(out / REQUEST)["measures"],
        "pictures": config.pictures,
        "pairs": None if pairs is None else {name: getattr(pairs, name) for name in ("low", "high", "below", "above")},
    }
    write_text(out / "README.md", data_card(summary, named=any(reader.mapping.identity for reader in readers.values())))
    write_report(
        out / "report.html", summary, splits, decision, thumbnails, pictures, overlaps(decision.names, decision.bits)
    )
    write_json(out / SUMMARY, summary)
    return summary


def print_summary(config: CurateConfig) -> None:
    """Curates, and prints how many pictures are kept and why others are dropped."""
    summary = curate(config)
    for split, rows in summary["rows"].items():
        print(f"{split:>10}: {summary['kept'][split]:,} of {rows:,} pictures are kept")
    dropped = {name: count for name, count in summary["dropped"].items() if count}
    print("dropped by", ", ".join(f"{name} {count:,}" for name, count in dropped.items()) or "nothing")
    print(f"data set: {config.out}, report: {Path(config.out) / 'report.html'}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command with these arguments (default: those of the process) and returns the exit status."""
    return run(print_summary, CurateConfig, argv, interrupted="interrupted; the same command resumes")
