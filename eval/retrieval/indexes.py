"""Kinds of FAISS indexes, saved and loaded, on GPUs where faiss-gpu has some; what approximate ones lose and gain."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from eval.retrieval.search import unit
from eval.retrieval.streaming import Ragged, flat_index, search_exactly, top_k
from faceclip.errors import CheckpointError, ConfigError
from faceclip.storage.files import disk_errors, replacing
from faceclip.storage.regular import open_regular

IndexKind = Literal["flat", "hnsw", "ivfpq"]
TRAINED_ON = 65_536  # vectors that IVF-PQ learns its cells from


def build_index(
    kind: IndexKind, vectors: NDArray[np.float32], *, links: int = 32, cells: int = 0, codes: int = 32, probes: int = 32
) -> Any:
    """Builds an index of unit-length gallery vectors (G, D) by inner product.

    flat: exact. hnsw: a graph of `links` links (Malkov and Yashunin 2016). ivfpq: `cells` cells (0: about 4 √G),
    `codes` bytes per vector, `probes` cells searched (Jégou et al. 2011). Raises ConfigError for sizes that do not go
    together.
    """
    if kind == "flat":
        return flat_index(vectors)
    count, width = vectors.shape
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 64
    elif kind == "ivfpq":
        cells = cells or max(1, int(4 * count**0.5))
        if width % codes or cells > count:
            raise ConfigError(
                f"ivfpq: {width} dimensions need codes that divide them and at most {count} cells, got {codes}, {cells}"
            )
        bits = 8 if count >= 256 else max(1, int(np.log2(count)))
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, cells, codes, bits, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = min(probes, cells)
        rows = np.random.default_rng(0).choice(count, min(count, TRAINED_ON), replace=False)
        index.train(unit(np.asarray(vectors[np.sort(rows)], np.float32)))
    else:
        raise ConfigError(f"index kind {kind!r}: choose flat, hnsw or ivfpq")
    for start in range(0, count, 65_536):
        index.add(unit(np.asarray(vectors[start : start + 65_536], np.float32)))
    return index


def save_index(index: Any, path: Path) -> None:
    """Writes an index whole or not at all. Raises DataError when the disk is full."""
    data = faiss.serialize_index(index)
    with disk_errors(path), replacing(path) as file:
        file.write(data.data)


def load_index(path: Path, *, width: int | None = None) -> Any:
    """Reads an index from a file. Raises CheckpointError for a damaged one, or one of vectors of another width."""
    try:
        with open_regular(path) as file:
            index = faiss.deserialize_index(np.frombuffer(file.read(), np.uint8))
    except (OSError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path} is no index ({str(error).splitlines()[0]}): build it again") from error
    if width is not None and index.d != width:
        raise CheckpointError(f"{path} holds vectors of {index.d} dimensions, the queries have {width}: build it again")
    return index


def to_gpus(index: Any, library: Any = faiss) -> Any:
    """Returns the index on all GPUs that the installed FAISS can use, by its own cloner; on none, the same index."""
    count = library.get_num_gpus() if hasattr(library, "get_num_gpus") else 0
    return library.index_cpu_to_all_gpus(index) if count else index


@dataclass(frozen=True, kw_only=True)
class Speed:
    """recall: share of the exact best k that were found. queries_per_second: of the search alone."""

    kind: str
    recall: float
    queries_per_second: float
    build_seconds: float


def measure_kinds(
    kinds: Sequence[IndexKind], vectors: NDArray[np.float32], queries: NDArray[np.float32], *, k: int = 10
) -> list[Speed]:
    """Measures recall at k and the speed of kinds of indexes, against the exact one."""
    exact = np.concatenate([rows for _, _, rows in top_k(build_index("flat", vectors), queries, k)])
    found = []
    for kind in kinds:
        began = time.perf_counter()
        index = build_index(kind, vectors)
        built = time.perf_counter()
        rows = np.concatenate([rows for _, _, rows in top_k(index, queries, k)])
        seconds = time.perf_counter() - built
        same = [len(np.intersect1d(one, other)) for one, other in zip(rows, exact, strict=True)]
        found.append(
            Speed(
                kind=kind,
                recall=float(np.mean(same) / exact.shape[1]),
                queries_per_second=len(queries) / max(seconds, 1e-9),
                build_seconds=built - began,
            )
        )
    return found


def distractor_curve(
    gallery: NDArray[np.float32],
    gallery_label: NDArray[np.integer],
    queries: NDArray[np.float32],
    query_label: NDArray[np.integer],
    sizes: Sequence[int],
    *,
    seed: int = 0,
) -> list[tuple[int, NDArray[np.bool_]]]:
    """Returns (number of distractors, whether each query finds its person first) for growing numbers of planted
    distractors of nobody: random directions around the gallery's mean with its covariance.

    They are as near to each other as the gallery's people are on average, not as look-alikes are: real distractors are
    harder. Raises ConfigError for sizes that do not grow.
    """
    if any(one >= other for one, other in pairwise(sizes)) or (sizes and sizes[0] < 0):
        raise ConfigError(f"sizes: distractors must grow from at least 0, got {list(sizes)}")
    generator = np.random.default_rng(seed)
    base = unit(gallery)
    mean, root = base.mean(axis=0), np.linalg.cholesky(np.cov(base.T) + 1e-6 * np.eye(base.shape[1]))
    index = flat_index(base)
    relevant, planted = Ragged.same_label(query_label, gallery_label), 0
    curve: list[tuple[int, NDArray[np.bool_]]] = []
    for size in sizes:
        while planted < size:
            count = min(65_536, size - planted)
            index.add(unit(mean + generator.standard_normal((count, base.shape[1])) @ root.T))
            planted += count
        ranks = search_exactly(index, queries, relevant).ranks
        curve.append((size, ranks == 1))
    return curve
