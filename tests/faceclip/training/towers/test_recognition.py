"""ArcFace's loss and rank-1 against values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from faceclip.training.towers.recognition import arcface_logits, arcface_loss, margin_at, rank1_hits


def test_margin_is_added_to_the_angle_of_the_labelled_class_only() -> None:
    # θ = 60° and 90°; with a margin of 30° the first becomes 90°, whose cosine is 0.
    logits = arcface_logits(torch.tensor([[0.5, 0.0]]), torch.tensor([0]), margin=math.pi / 6, scale=10.0)
    torch.testing.assert_close(logits, torch.tensor([[0.0, 0.0]]), atol=1e-5, rtol=0)


def test_no_margin_is_plain_scaled_cosine() -> None:
    cosine = torch.tensor([[0.5, -0.2, 0.9]])
    torch.testing.assert_close(arcface_logits(cosine, torch.tensor([2]), margin=0.0, scale=4.0), 4 * cosine)


def test_logit_falls_with_the_angle_beyond_the_turning_point() -> None:
    angles = torch.linspace(0.05, math.pi - 0.05, 60)
    cosine = torch.stack([angles.cos(), torch.zeros_like(angles)], dim=1)
    logits = arcface_logits(cosine, torch.zeros(60, dtype=torch.long), margin=0.5, scale=1.0)[:, 0]
    assert (logits.diff() < 0).all()


def test_loss_by_hand() -> None:
    # Embedding along x, centers at 0° and 90°: cosines 1 and 0, margin 60° → logits s·½ and 0.
    loss, accuracy = arcface_loss(
        torch.tensor([[3.0, 0.0]]),
        torch.tensor([[2.0, 0.0], [0.0, 5.0]]),
        torch.tensor([0]),
        margin=math.pi / 3,
        scale=2.0,
    )
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.0)), abs=2e-3)  # cosine clamped at 1 − 1e-6
    assert accuracy.item() == 1.0


def test_gradient_is_finite_for_a_perfect_match() -> None:
    embedding = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss, _ = arcface_loss(embedding, torch.eye(2), torch.tensor([0]), margin=0.5, scale=32.0)
    loss.backward()
    assert torch.isfinite(embedding.grad).all()


def test_margin_ramp() -> None:
    steps = [0, 10, 15, 20, 99]
    assert [margin_at(s, warmup=10, ramp=10, margin=0.4) for s in steps] == pytest.approx([0, 0, 0.2, 0.4, 0.4])


def test_rank1_counts_probes_and_ties_are_misses() -> None:
    identities = np.array([5, 5, 5, 9, 9])
    indices = np.array([0, 1, 2, 0, 1])
    embeddings = np.array([[1, 0], [2, 0.1], [1, 1], [0, 3], [0.2, 1.0]])
    hits, probes = rank1_hits(embeddings, identities, indices)
    assert probes.tolist() == [1, 2, 4]
    assert hits.tolist() == [True, False, True]  # (1, 1) is as near to both people: a tie


def test_rank1_needs_a_gallery_image() -> None:
    with pytest.raises(ValueError, match="gallery"):
        rank1_hits(np.eye(3), np.array([0, 0, 1]), np.array([0, 1, 1]))
