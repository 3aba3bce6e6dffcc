"""Which rows of a batch a term looks at.

A term that counts for some samples alone looks at these, whose number it has to read; or always at as many, of which
those that do not count weigh nothing. The second way does the same work in every step and on every rank: nothing waits
for a GPU, and ranks that gather each other's weights (ZeRO-3) run the same modules.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rows:
    """rows (N,): indices. weights (N,): shares of a mean over those that count; 0 for the others."""

    rows: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, at_once: int) -> list["Rows"]:
        """In parts of at most so many."""
        parts = zip(self.rows.split(at_once), self.weights.split(at_once), strict=True)
        return [Rows(rows=rows, weights=weights) for rows, weights in parts]


def chosen_rows(ranked: Tensor, counts: Tensor, *, fixed: bool) -> Rows:
    """`ranked`, indices (N,) of which the first are to be looked at, where `counts` (B,) is true; all of them with
    `fixed`."""
    kept = counts[ranked]
    if not fixed:
        ranked = ranked[kept]
        kept = counts[ranked]
    return Rows(rows=ranked, weights=kept / kept.sum().clamp(min=1))
