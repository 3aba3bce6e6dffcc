"""The loss on named attributes: what its classifier learns from, and where its gradient goes."""

import numpy as np
import torch

from faceclip.data.arrays import load_arrays
from makeup_plugin.losses import IGNORED, attribute_loss
from train_generator.towers.attributes import LatentClassifier, attribute_classes, named_attributes


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
