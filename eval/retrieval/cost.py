"""What exact ranks and average precision cost beside FAISS's own search of the best items."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from rich.progress import track

from eval.retrieval.planted import Planted
from eval.retrieval.search import unit
from eval.retrieval.streaming import BEST, BLOCK, Ragged, search_exactly
from faceclip.training.accelerators import memory_gib


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of all queries: seconds of the processor of our search and of FAISS's alone, their ratio, and how often a query
    needed the whole gallery beyond FAISS's answer. memory_gib: the most that the process ever had."""

    gallery: int
    queries: int
    width: int
    best: int
    threads: int
    ours_seconds: float
    faiss_seconds: float
    ratio: float
    counted: int
    memory_gib: float
    rank_1: float
    mean_average_precision: float


def compare_with_faiss(planted: Planted, *, k: int = BEST, block: int = BLOCK, threads: int = 1) -> Cost:
    """Runs both searches of each block of queries, one after the other, the first of them by turns.

    Seconds are those of the process, so that other programs on the machine hardly count.
    """
    faiss.omp_set_num_threads(threads)
    ours = raw = 0.0
    counted, ranks, precision = 0, [], []
    for number, start in enumerate(track(range(0, len(planted.queries), block), "blocks of queries", transient=True)):
        queries, asked = planted.queries[start : start + block], planted.asked[start : start + block]

        def exact(queries=queries, asked=asked):
            relevant = Ragged.same_label(asked, planted.label)
            return search_exactly(planted.index, queries, relevant, k=k, block=block)

        def alone(queries=queries):
            return planted.index.search(unit(queries), k)

        if number % 2:
            found, seconds = _timed(exact)
            _, plain = _timed(alone)
        else:
            _, plain = _timed(alone)
            found, seconds = _timed(exact)
        ours, raw = ours + seconds, raw + plain
        counted += found.counted
        ranks.append(found.ranks)
        precision.append(found.precision)
    return Cost(
        gallery=planted.index.ntotal,
        queries=len(planted.queries),
        width=planted.index.d,
        best=k,
        threads=threads,
        ours_seconds=ours,
        faiss_seconds=raw,
        ratio=ours / max(raw, 1e-9),
        counted=counted,
        memory_gib=memory_gib(torch.device("cpu")),
        rank_1=float((np.concatenate(ranks) == 1).mean()),
        mean_average_precision=float(np.concatenate(precision).mean()),
    )


def _timed(work: Callable):
    began = time.process_time()
    found = work()
    return found, time.process_time() - began
