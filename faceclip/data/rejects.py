"""Counts unusable rows by reason, with examples. More than a set share of them is an error."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faceclip.data.cells import RejectedRecord
from faceclip.errors import TooManyBadRecordsError
from faceclip.storage.files import write_json

EXAMPLES = 5
EARLY_ROWS = 500  # enough rows to judge a share before the end


@dataclass(kw_only=True)
class RejectCounts:
    """rows: number of rows read. counts: rejected rows by reason. examples: the first messages of each reason."""

    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rejected: RejectedRecord) -> None:
        """Counts one rejected row."""
        self.counts[rejected.reason] = self.counts.get(rejected.reason, 0) + 1
        shown = self.examples.setdefault(rejected.reason, [])
        if len(shown) < EXAMPLES:
            shown.append(str(rejected)[:300])

    def merge(self, other: Mapping[str, Any]) -> None:
        """Adds the counts of another object's `to_dict`."""
        self.rows += other["rows"]
        for reason, count in other["counts"].items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            shown = self.examples.setdefault(reason, [])
            shown += other["examples"][reason][: EXAMPLES - len(shown)]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "counts": self.counts, "examples": self.examples}

    @property
    def bad(self) -> int:
        return sum(self.counts.values())

    @property
    def share(self) -> float:
        return self.bad / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        """Returns a line that summarizes the counts."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(self.counts.items()))
        return f"{self.bad:,} of {self.rows:,} rows unusable ({self.share:.1%})" + (f": {reasons}" if reasons else "")

    def write(self, path: Path, source: str, **facts: int) -> None:
        """Writes the report as JSON: source, rows, usable, share, counts and examples, and any further facts."""
        usable = {"usable": self.rows - self.bad, "share": self.share}
        write_json(path, {"source": source, **usable, **facts, **self.to_dict()})

    def check(
        self, limit: float, path: Path, source: str, *, at_end: bool, remedies: Mapping[str, str] | None = None
    ) -> None:
        """Raises TooManyBadRecordsError, which names counts and report, if the share is above `limit`.

        remedies: by reason, what else helps where this reason is the most frequent.
        """
        if self.share <= limit or not (at_end or self.rows >= EARLY_ROWS):
            return
        self.write(path, source)
        remedy = (remedies or {}).get(max(self.counts, key=self.counts.__getitem__))
        raise TooManyBadRecordsError(
            f"{source}: {self}; at most {limit:.1%} is allowed. Examples of each reason are in {path}: repair the "
            "data or the column mapping, or raise data.max_bad_share" + (f"; {remedy}" if remedy else "")
        )
