"""Errors weighed by region, by hand."""

import numpy as np
import pytest
import torch

from faceclip.data.records import REGIONS
from faceclip.errors import ConfigError
from train_generator.towers.regions import region_weights, weight_table, weighted_mean
from train_generator.towers.vae import WeightedSource


def test_regions_that_are_not_named_weigh_one():
    table = weight_table({"lips": 8, "glasses": 4})
    assert table[REGIONS.index("lips")] == 8 and table[REGIONS.index("glasses")] == 4
    assert table.sum() == 12 + len(REGIONS) - 2


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"mouth": 2}, r"^region_weights\.mouth: .*\blips\b"),
        ({"lips": 0}, r"^region_weights\.lips: .* 0$"),
        ({"lips": float("inf")}, r"^region_weights\.lips: .* inf$"),
    ],
)
def test_weights_that_cannot_be(weights, message):
    with pytest.raises(ConfigError, match=message):
        weight_table(weights)


def test_a_cell_weighs_the_average_of_its_pixels():
    lips = REGIONS.index("lips")
    regions = np.zeros((1, 4, 4), np.uint8)
    regions[0, 0, :2] = regions[0, 2:, 2:] = lips
    table = weight_table({"lips": 9})
    np.testing.assert_array_equal(region_weights(regions, table, side=2)[0, 0].numpy(), [[5, 1], [1, 9]])
    np.testing.assert_array_equal(region_weights(regions, table, side=4)[0, 0].numpy(), table[regions[0]])


def test_weighted_mean():
    errors = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # two channels
    weights = torch.tensor([[[[3.0, 1.0]]]])
    assert weighted_mean(errors, weights).item() == pytest.approx((3 * 1 + 2 + 3 * 3 + 4) / (2 * 4))
    assert weighted_mean(errors, 5 * weights).item() == pytest.approx(weighted_mean(errors, weights).item())
    assert weighted_mean(errors, torch.ones(1, 1, 1, 2)).item() == errors.mean().item()


def test_mirrored_portraits_keep_their_weights(tiny_dataset):
    """What weighs nine is lips, whichever way the portrait faces."""
    source = WeightedSource(tiny_dataset, "train", size=32, weights={"lips": 9})
    rows = [int(np.flatnonzero((np.asarray(source.arrays.regions) == REGIONS.index("lips")).any(axis=(1, 2)))[0])] * 8
    batch = source.get_batch(rows, [np.random.default_rng(seed) for seed in range(8)])
    image, lips = source.arrays.images[rows[0]], source.arrays.regions[rows[0]] == REGIONS.index("lips")
    mirrored = 0
    for pixels, weights in zip(batch["image"].numpy(), batch["weights"].numpy(), strict=True):
        flipped = not np.array_equal(pixels, image.transpose(2, 0, 1))
        mirrored += flipped
        np.testing.assert_array_equal(weights[0] == 9, lips[:, ::-1] if flipped else lips)
    assert 0 < mirrored < 8
