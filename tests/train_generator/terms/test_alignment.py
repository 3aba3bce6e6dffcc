"""How many phrases an alignment loss is the mean of, and that it asks for regions."""

import pytest
import torch

from faceclip.errors import ConfigError
from train_generator.terms.alignment import aligned_phrases, check_regions


def test_phrases_with_words_and_a_region_on_the_grid_count():
    masks = torch.zeros(2, 4, 8, 8, dtype=torch.uint8)
    masks[:, 0, :4, :4] = 1  # a cell of the 2 × 2 grid
    masks[:, 1, 0, 0] = 1  # lost on the grid
    masks[:, 2, 4:, :] = 1
    words = torch.zeros(2, 4, 77, dtype=torch.bool)
    words[:, [0, 1, 3], 5] = True  # phrase 2 has no words, phrase 3 no region
    batch = {
        "latents": torch.zeros(2, 4, 4, 4),
        "phrase_masks": masks,
        "phrase_tokens": words,
        "keep_text": torch.tensor([True, True]),
    }
    assert int(aligned_phrases(batch, 2)) == 2
    assert int(aligned_phrases(batch | {"keep_text": torch.tensor([True, False])}, 2)) == 1
    words[1, 2, 7] = True
    assert int(aligned_phrases(batch, 2)) == 3
    assert int(aligned_phrases(batch | {"latents": torch.zeros(2, 4, 16, 16)}, 2)) == 5  # the small region is seen too
    masks[0, 3, :4, :2] = 1  # half of a cell is enough
    assert int(aligned_phrases(batch, 2)) == 4


def test_a_weight_without_regions_is_rejected():
    check_regions(None, 0.0, "photos")
    check_regions(object(), 0.03, "renders")
    with pytest.raises(ConfigError, match=r"^loss\.alignment=0\.03: photos "):
        check_regions(None, 0.03, "photos")
