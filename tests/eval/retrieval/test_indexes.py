"""Kinds of indexes: recall, files, GPUs by a stand-in of faiss, distractors."""

import numpy as np
import pytest

from eval.retrieval.indexes import build_index, distractor_curve, load_index, measure_kinds, save_index, to_gpus
from eval.retrieval.search import unit
from faceclip.errors import CheckpointError, ConfigError

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(600, 32)).astype(np.float32)
QUERIES = VECTORS[:20] + 0.1 * RNG.normal(size=(20, 32)).astype(np.float32)


def test_approximate_kinds_are_measured_against_the_exact_one():
    flat, hnsw, ivfpq = measure_kinds(["flat", "hnsw", "ivfpq"], VECTORS, QUERIES)
    assert flat.recall == 1 and hnsw.recall > 0.9 and 0.2 < ivfpq.recall <= 1
    assert all(speed.queries_per_second > 0 for speed in (flat, hnsw, ivfpq))
    with pytest.raises(ConfigError, match="codes"):
        build_index("ivfpq", VECTORS, codes=5)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_a_saved_index_answers_as_before(kind, tmp_path):
    index, path = build_index(kind, VECTORS), tmp_path / "a.index"
    save_index(index, path)
    loaded = load_index(path, width=32)
    np.testing.assert_array_equal(loaded.search(unit(QUERIES), 5)[1], index.search(unit(QUERIES), 5)[1])
    with pytest.raises(CheckpointError, match=r"a\.index .*32.*16"):
        load_index(path, width=16)
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    with pytest.raises(CheckpointError, match=r"a\.index"):
        load_index(path)
    with pytest.raises(CheckpointError, match="absent"):
        load_index(tmp_path / "absent")


class Library:
    """What faiss-gpu adds to faiss."""

    def __init__(self, gpus):
        self.gpus, self.moved = gpus, []

    def get_num_gpus(self):
        return self.gpus

    def index_cpu_to_all_gpus(self, index):
        self.moved.append(index)
        return ("on GPUs", index)


def test_an_index_moves_to_gpus_by_the_librarys_own_cloner():
    index = build_index("flat", VECTORS)
    with_gpus, without = Library(2), Library(0)
    assert to_gpus(index, with_gpus) == ("on GPUs", index) and with_gpus.moved == [index]
    assert to_gpus(index, without) is index and not without.moved
    assert to_gpus(index, object()) is index
    assert to_gpus(index).search(unit(QUERIES), 1)[1][0, 0] == 0


def test_more_distractors_find_fewer_people():
    people = np.repeat(np.arange(60), 2)
    portraits = (RNG.normal(size=(60, 16))[people] + 0.9 * RNG.normal(size=(120, 16))).astype(np.float32)
    gallery, asked = portraits[::2], portraits[1::2]
    curve = distractor_curve(gallery, people[::2], asked, people[1::2], [0, 500, 4000])
    assert [size for size, _ in curve] == [0, 500, 4000]
    few, some, many = (found.mean() for _, found in curve)
    assert few > some > many
    again = distractor_curve(gallery, people[::2], asked, people[1::2], [0, 500, 4000])
    assert all((one[1] == other[1]).all() for one, other in zip(curve, again, strict=True))
    with pytest.raises(ConfigError, match="sizes"):
        distractor_curve(gallery, people[::2], asked, people[1::2], [5, 5])
