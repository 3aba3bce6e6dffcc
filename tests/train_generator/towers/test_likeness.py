"""The loss by which a recognizer compares a restored face with the true one."""

import numpy as np
import torch

from faceclip import weights
from faceclip.data.arrays import load_arrays
from faceclip.towers.face import FaceViT
from train_generator.towers.likeness import Likeness


def test_likeness_is_zero_for_the_same_face_and_its_gradient_leads_there(tiny_dataset):
    likeness = Likeness(FaceViT.from_pretrained(weights.path("tiny/recognizer")))
    arrays = load_arrays(tiny_dataset, "test")
    true = torch.from_numpy(np.array(arrays.images[:2])).permute(0, 3, 1, 2).float() / 255
    points = torch.from_numpy(np.array(arrays.landmarks_5[:2]))
    same = likeness(true, true, points)
    assert max(value.item() for value in same) < 1e-4
    blurred = torch.nn.functional.avg_pool2d(true, 5, 1, 2).requires_grad_()
    tokens, identity = likeness(blurred, true, points)
    assert tokens.item() > 0.01 and identity.item() > 0.01
    (tokens + identity).backward()
    assert all(parameter.grad is None for parameter in likeness.parameters())
    with torch.no_grad():
        nearer = blurred - 3e-3 * blurred.grad / blurred.grad.square().mean().sqrt()
        assert sum(likeness(nearer, true, points)) < tokens + identity
