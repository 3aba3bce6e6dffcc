"""Whether a picture shows what its prompt names, as the judge sees it."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from faceclip.training.towers.labels import JUDGED

_SMILING = frozenset({"smile", "laugh"})


def is_present(name: str, wanted: str, judged: str) -> bool:
    """Returns whether a judged value fulfills the wanted one.

    A hair color must be the same. Glasses, hats and beards must be there, of whatever kind, or absent where the
    prompt says so. A smile may be a laugh and the other way round; other expressions must be the same.
    """
    if name in ("glasses", "hat", "beard"):
        return (wanted == "none") == (judged == "none")
    if name == "expression" and wanted in _SMILING:
        return judged in _SMILING
    return wanted == judged


def prompt_scores(
    wanted: Sequence[Mapping[str, str]], judged: Mapping[str, Sequence[str]], *, exact: bool = False
) -> dict[str, NDArray[np.float64]]:
    """Returns for each attribute a score per picture (N,): 1 fulfilled, 0 not, NaN where the prompt does not name it.

    `wanted`: what each prompt names; `judged`: attribute → N values seen; `exact` demands the very value. The key
    "all" holds each picture's mean over what its prompt names; "smile" the expression's score where the prompt names
    a smile or a laugh.
    """
    scores = {}
    for name in JUDGED:
        column = np.full(len(wanted), np.nan)
        for row, names in enumerate(wanted):
            if name in names:
                seen = judged[name][row]
                column[row] = names[name] == seen if exact else is_present(name, names[name], seen)
        scores[name] = column
    table = np.stack(list(scores.values()))
    known = ~np.isnan(table)
    named = known.sum(axis=0)
    sums = np.where(known, table, 0).sum(axis=0)
    smiling = np.array([names.get("expression") in _SMILING for names in wanted], dtype=bool)
    scores["smile"] = np.where(smiling, scores["expression"], np.nan)
    scores["all"] = np.where(named > 0, sums / np.maximum(named, 1), np.nan)
    return scores
