"""The loss on named attributes: what its classifier learns from, and where its gradient goes."""

import math

import numpy as np
import torch

from faceclip.data.arrays import load_arrays
from train_generator.towers.attributes import (
    IGNORED,
    LatentClassifier,
    attribute_classes,
    attribute_loss,
    feature_distance,
    named_attributes,
)


def test_loss_averages_over_told_attributes_by_hand():
    first = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    second = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    classes = torch.tensor([[1, 2], [0, IGNORED]])
    # ln 2 for the first, ln 3 for its second attribute, ln 4/3 for the second row's only one.
    expected = (math.log(2) + math.log(3) + math.log(4 / 3)) / 3
    torch.testing.assert_close(attribute_loss([first, second], classes), torch.tensor(expected))
    nothing = attribute_loss([first.requires_grad_(), second], torch.full((2, 2), IGNORED))
    nothing.backward()
    assert nothing == 0 and first.grad.abs().sum() == 0


def test_frozen_reading_is_the_same_and_moves_only_the_latents():
    torch.manual_seed(0)
    classifier = LatentClassifier((4, 8), [2, 3], widths=(16, 16, 32))
    latents, timesteps = torch.randn(5, 4, 8, 8, requires_grad=True), torch.tensor([0, 10, 500, 900, 999])
    plain, frozen = classifier(latents, timesteps), classifier.frozen(latents, timesteps)
    assert [tuple(logits.shape) for logits in frozen.logits] == [(5, 2), (5, 3)]
    assert [tuple(features.shape) for features in frozen.features] == [(5, 16, 8, 8), (5, 16, 4, 4), (5, 32, 2, 2)]
    for one, other in zip(plain.logits + plain.features, frozen.logits + frozen.features, strict=True):
        torch.testing.assert_close(one, other)
    sum(logits.sum() for logits in frozen.logits).backward()
    assert latents.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_feature_distance_compares_directions_by_hand():
    first = torch.tensor([[3.0, 0.0], [4.0, 1.0]]).reshape(1, 2, 1, 2)  # cells (.6, .8) and (0, 1)
    second = torch.tensor([[0.8, 0.0], [0.6, -2.0]]).reshape(1, 2, 1, 2)  # cells (.8, .6) and (0, -1)
    torch.testing.assert_close(feature_distance([first], [second]), torch.tensor((0.08 + 4) / 2))
    torch.testing.assert_close(feature_distance([first, first], [second, 5 * first]), torch.tensor((0.08 + 4) / 4))


def test_classifier_learns_what_noise_leaves():
    torch.manual_seed(0)
    classifier = LatentClassifier((2, 8), [2], widths=(16, 16, 32))
    optimizer = torch.optim.Adam(classifier.parameters(), 3e-3)
    for _ in range(60):
        labels = torch.randint(0, 2, (32, 1))
        latents = torch.randn(32, 2, 8, 8) * 0.5
        latents[:, 0, :2, :2] += (labels * 2.0 - 1)[..., None]
        loss = attribute_loss(classifier(latents, torch.full((32,), 100)).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2  # chance is ln 2 = 0.69


def test_classes_and_names_of_a_data_set(tiny_dataset):
    arrays = load_arrays(tiny_dataset, "train", size=32)
    names = ("hair_color", "glasses")
    classes, named = attribute_classes(arrays, names), named_attributes(arrays, names, 4)
    assert classes.shape == (len(arrays), 2) and named.shape == (len(arrays), 4, 2)
    bald = arrays.attribute_values("hair_length") == "bald"
    np.testing.assert_array_equal(classes[:, 0] == IGNORED, bald)
    np.testing.assert_array_equal(classes[:, 1], arrays.attributes["glasses"])
    for row, captions in enumerate(arrays.captions):
        for kind, caption in enumerate(captions[:4]):
            assert named[row, kind].tolist() == [name in caption.named for name in names]
