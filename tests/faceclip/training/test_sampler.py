"""The data order and every sample's draws, by golden numbers: another order would make runs that cannot be resumed."""

import numpy as np
import pytest
import torch

from faceclip.errors import EmptyDatasetError
from faceclip.training import MapSource
from faceclip.training.sampler import GroupedSampler, OrderedSampler, fetch, sample_rng, sampler_of, stack


def test_the_order_is_that_of_earlier_releases() -> None:
    first = [(2, 0), (5, 0), (4, 0), (1, 0), (3, 0), (0, 0), (3, 1), (1, 1), (4, 1), (0, 1), (2, 1), (5, 1), (3, 2)]
    assert OrderedSampler(6, seed=3).slots(0, 13) == first
    sampler = OrderedSampler(6, seed=3)
    assert [sampler.at(position) for position in (7, 0, 12, 5)] == [first[7], first[0], first[12], first[5]]


def test_a_single_sample_is_enough() -> None:
    assert OrderedSampler(1, seed=0).slots(0, 3) == [(0, 0), (0, 1), (0, 2)]
    with pytest.raises(EmptyDatasetError):
        OrderedSampler(0, seed=0)


def test_draws_of_a_sample_are_those_of_earlier_releases() -> None:
    assert sample_rng(3, 4, 5).integers(1000, size=4).tolist() == [790, 19, 325, 799]
    assert sample_rng(0, 0, 0).integers(1000, size=4).tolist() == [522, 889, 992, 557]


@pytest.mark.parametrize("other", [(4, 4, 5), (3, 5, 5), (3, 4, 6), (3, 5, 4)])
def test_seed_sample_and_epoch_all_decide_the_draws(other: tuple[int, int, int]) -> None:
    assert sample_rng(3, 4, 5).random() != sample_rng(*other).random()


def test_batches_of_groups_hold_one_group_and_an_epoch_holds_everything() -> None:
    groups = np.array([0, 1, 0, 0, 1, 0, 2, 0])
    sampler = GroupedSampler(groups, seed=3, batch_size=2)
    epochs = [[sampler.slots(2 * (5 * epoch + number), 2) for number in range(5)] for epoch in range(2)]
    for epoch, batches in enumerate(epochs):
        for batch in batches:
            assert len({groups[row] for row, _ in batch}) == 1
            assert {number for _, number in batch} == {epoch}
        assert {row for batch in batches for row, _ in batch} == set(range(8))
    assert [[row for row, _ in batch] for batch in epochs[0]] != [[row for row, _ in batch] for batch in epochs[1]]
    # A function of the position alone: another sampler begins in the middle, and steps back.
    again = GroupedSampler(groups, seed=3, batch_size=2)
    assert again.slots(2 * 7, 2) == epochs[1][2] and again.slots(2 * 1, 2) == epochs[0][1]
    with pytest.raises(ValueError, match="slots 1 to 3"):
        sampler.slots(1, 2)


@pytest.mark.parametrize("groups", [None, np.arange(9) % 2])
def test_a_step_takes_the_same_batches_on_any_number_of_ranks(groups: np.ndarray | None) -> None:
    """Four batches of a step: by one rank one after another, by two ranks two each, by four one each."""

    class Grouped(Draws):
        @property
        def groups(self) -> np.ndarray | None:
            return groups

    sampler = sampler_of(Grouped(), seed=5, batch_size=3)
    for step in range(4):
        taken = []
        for ranks in (1, 2, 4):
            micro = range(step * 4 // ranks, (step + 1) * 4 // ranks)
            places = [chunk * ranks + rank for chunk in micro for rank in range(ranks)]
            taken.append([sampler.slots(place * 3, 3) for place in places])
        assert taken[0] == taken[1] == taken[2]


def test_groups_are_drawn_as_in_earlier_releases() -> None:
    groups = np.array([0, 1, 0, 0, 1, 0, 2, 0])
    sampler = GroupedSampler(groups, seed=3, batch_size=2)
    drawn = [7, 0, 6, 6, 2, 3, 4, 1, 5, 7, 6, 6, 5, 7, 0, 3, 3, 2, 1, 4]
    assert [row for number in range(10) for row, _ in sampler.slots(2 * number, 2)] == drawn
    other = GroupedSampler(groups, seed=4, batch_size=2)
    assert [row for number in range(10) for row, _ in other.slots(2 * number, 2)] != drawn
    for start, count in ((0, 4), (0, 1), (3, 2)):
        with pytest.raises(ValueError, match=f"slots {start} to {start + count} "):
            sampler.slots(start, count)
    with pytest.raises(EmptyDatasetError):
        GroupedSampler(np.zeros(0, np.int64), seed=3, batch_size=2)


def test_a_source_without_groups_is_ordered_by_its_length_and_the_seed() -> None:
    assert sampler_of(Draws(), 5, 3).slots(0, 12) == OrderedSampler(9, 5).slots(0, 12)


class Draws(MapSource):
    """A source whose samples are one draw each."""

    def __len__(self) -> int:
        return 9

    def get(self, index: int, rng: np.random.Generator) -> dict:
        return {"index": index, "draw": rng.random()}


class Batches(Draws):
    def get_batch(self, indices: list[int], rngs: list[np.random.Generator]) -> dict:
        return {"index": indices, "draw": [rng.random() for rng in rngs], "whole": True}


class Whole(MapSource):
    """A source of whole batches alone."""

    def __len__(self) -> int:
        return 9

    def get_batch(self, indices: list[int], rngs: list[np.random.Generator]) -> dict:
        return {"index": indices, "draw": [rng.random() for rng in rngs]}


class Collated(Draws):
    def collate(self, samples: list[dict]) -> dict:
        return {"count": len(samples), "last": samples[-1]["draw"]}


def test_a_batch_gives_every_slot_its_own_generator() -> None:
    slots = [(7, 0), (2, 1), (7, 1)]
    expected = [sample_rng(5, index, epoch).random() for index, epoch in slots]
    found = fetch(Draws(), slots, seed=5)
    assert found["index"].tolist() == [7, 2, 7] and found["draw"].tolist() == expected
    assert fetch(Batches(), slots, seed=5) == {"index": [7, 2, 7], "draw": expected, "whole": True}
    single = Whole().get(7, sample_rng(5, 7, 0))
    assert single == {"index": 7, "draw": expected[0]}
    assert fetch(Collated(), slots, seed=5) == {"count": 3, "last": expected[-1]}


def test_fields_are_stacked_by_their_kind() -> None:
    rows = [{"t": torch.ones(2), "a": np.zeros(3, np.float32), "i": 1, "b": True, "s": "x", "n": None}] * 2
    batch = stack(rows)
    assert batch["t"].shape == (2, 2) and batch["a"].shape == (2, 3) and batch["a"].dtype == torch.float32
    assert batch["i"].tolist() == [1, 1] and batch["b"].tolist() == [True, True]
    assert stack(rows[:1])["i"].tolist() == [1]
    assert batch["s"] == ["x", "x"] and batch["n"] == [None, None]
