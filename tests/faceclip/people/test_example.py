import numpy as np
import pytest

from faceclip.errors import ConfigError
from faceclip.faces.batches import detected_faces
from faceclip.people.example import example_portrait


def test_a_portrait_shows_a_face_that_is_found_and_is_always_the_same():
    first = example_portrait(0)
    assert first.size == (256, 256) and first.mode == "RGB"
    assert detected_faces([np.asarray(first)], label="faces").found.all()
    assert np.array_equal(np.asarray(first), np.asarray(example_portrait(0)))
    assert not np.array_equal(np.asarray(first), np.asarray(example_portrait(1)))
    assert not np.array_equal(np.asarray(first), np.asarray(example_portrait(0, picture=1)))


@pytest.mark.parametrize("bad", [{"person": -1}, {"picture": -1}, {"size": 8}])
def test_bad_numbers_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        example_portrait(**bad)
