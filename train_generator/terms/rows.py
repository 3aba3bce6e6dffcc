"""Chooses the rows of a batch that a term computes.

A term that counts for some samples only can compute these, whose number it has to read from the device; or it can
always compute the same number of rows and give weight 0 to those that do not count. The second way does the same work
in every step and on every rank: nothing waits for a GPU, and ranks that gather each other's weights (ZeRO-3) run the
same modules.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """rows (N,): indices. weights (N,): they sum to 1 over the rows that count, and are 0 for the others."""

    rows: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, at_once: int) -> list["Rows"]:
        """Splits the rows into parts of at most `at_once`."""
        parts = zip(self.rows.split(at_once), self.weights.split(at_once), strict=True)
        return [Rows(rows=rows, weights=weights) for rows, weights in parts]


def chosen_rows(ranked: Tensor, counts: Tensor, *, fixed: bool) -> Rows:
    """Returns the rows of `ranked`, indices (N,), for which `counts` (B,) is true; with `fixed` all of them."""
    kept = counts[ranked]
    if not fixed:
        ranked = ranked[kept]
        kept = counts[ranked]
    return Rows(rows=ranked, weights=kept / kept.sum().clamp(min=1))
