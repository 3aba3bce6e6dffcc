"""Pictures against pictures and texts: cosines of features, perceptual distance, diversity.

Feature maps and embeddings are injected: `eval.metrics.models` makes them.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from eval.metrics.distances import cosine


def text_similarity(pictures: NDArray[np.floating], texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns CLIP scores (N,), 100 · max(cosine, 0), of picture and text embeddings (N, D) (Hessel et al. 2021)."""
    return 100 * np.maximum(cosine(pictures, texts), 0)


def perceptual_distance(
    first: Sequence[Tensor], second: Sequence[Tensor], weights: Sequence[Tensor]
) -> NDArray[np.float64]:
    """Returns LPIPS per picture (N,) of feature maps (N, C, H, W) of each layer and the layers' weights (C,) (Zhang et
    al. 2018, arXiv:1801.03924, eq. 1): channels of unit length, weighted squared difference, mean over the places, sum
    over the layers.

    Raises ValueError for lists of unequal length.
    """
    total: Tensor | None = None
    for one, other, weight in zip(first, second, weights, strict=True):
        square = (_unit_channels(one) - _unit_channels(other)).square()
        layer = (square * weight.reshape(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2))
        total = layer if total is None else total + layer
    if total is None:
        raise ValueError("a perceptual distance needs at least one layer of features")
    return total.double().cpu().numpy()


def _unit_channels(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1, eps=1e-8)


def pairwise_mean(group: Sequence[Hashable], distance: Callable[[int, int], float]) -> NDArray[np.float64]:
    """Returns the diversity (N,), which is the mean distance of the pairs within each group, in the row of the group's
    first picture; NaN elsewhere, and for a group of one.

    group: N labels, as (reference, prompt). distance: of the pictures of two rows.
    """
    members: dict[Hashable, list[int]] = {}
    for row, label in enumerate(group):
        members.setdefault(label, []).append(row)
    found = np.full(len(group), np.nan)
    for rows in members.values():
        if len(rows) > 1:
            found[rows[0]] = np.mean([distance(one, other) for one, other in combinations(rows, 2)])
    return found


def attribute_count(probabilities: NDArray[np.floating], *, threshold: float = 0.85) -> NDArray[np.float64]:
    """Returns Attr_c per picture (N,): how many of the attributes' probabilities (N, A) exceed the threshold.

    It counts attributes; it does not ask whether the prompt named them.
    """
    return (np.asarray(probabilities) > threshold).sum(axis=1).astype(np.float64)
