"""Damages and attacks of a reference photo, against a small differentiable encoder."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eval.robustness.damages import DAMAGES, fgsm, pgd

POINTS = np.array([[20.0, 24], [44, 24], [32, 36], [24, 48], [40, 48]])
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, stride=3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.LazyLinear(12)
    )


@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_grows_and_keeps_the_size(name):
    damage, strengths = DAMAGES[name]
    errors = []
    for strength in strengths:
        found = damage(PICTURE, strength, POINTS)
        assert found.shape == PICTURE.shape and found.dtype == np.uint8
        errors.append(np.abs(found.astype(int) - PICTURE).mean())
    assert all(one < other for one, other in itertools.pairwise(errors))
    if 0 in strengths or name.startswith("resolution"):
        assert errors[0] == 0


def test_mask_covers_the_mouth_and_glasses_cover_the_eyes():
    covered = np.abs(DAMAGES["mask, share"][0](PICTURE, 1, POINTS).astype(int) - PICTURE).sum(axis=2) > 0
    assert covered[48, 24:41].mean() > 0.9 and covered[24].mean() == 0
    covered = np.abs(DAMAGES["sunglasses, size"][0](PICTURE, 1, POINTS).astype(int) - PICTURE).sum(axis=2) > 0
    assert covered[24, 20] and covered[24, 44] and covered[48].mean() == 0


def test_attacks_stay_within_their_bounds_and_beat_noise(encoder):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def likeness(moved):
        return F.cosine_similarity(encoder(images), encoder(moved)).mean().item()

    epsilon = 8 / 255
    drawn = torch.Generator().manual_seed(2)
    noisy = (images + epsilon * torch.randint(0, 2, images.shape, generator=drawn).mul(2).sub(1)).clamp(0, 1)
    one, many = fgsm(images, encoder, epsilon), pgd(images, encoder, epsilon, steps=10)
    for moved in (one, many):
        assert (moved - images).abs().max() <= epsilon + 1e-6 and moved.min() >= 0 and moved.max() <= 1
    assert likeness(many) < likeness(one) + 1e-3 < likeness(noisy)
    assert likeness(pgd(images, encoder, 2 / 255)) > likeness(many)
    with pytest.raises(ValueError, match="epsilon"):
        pgd(images, encoder, 8)
