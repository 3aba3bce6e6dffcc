"""Attributes as classes, and which of them captions name."""

import numpy as np

from faceclip.data.arrays import load_arrays
from makeup_plugin.losses import IGNORED
from train_generator.towers.attributes import attribute_classes, named_attributes


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
