"""How many phrases an alignment loss is the mean of, and that it asks for regions."""

from types import SimpleNamespace

import pytest
import torch

from faceclip.errors import ConfigError
from makeup_plugin.attention import AttentionCapture, layers_at
from makeup_plugin.conditioning import Conditions, predict, time_ids
from makeup_plugin.losses import semantic_alignment_loss
from tests.makeup_plugin.conftest import make_unet
from train_generator.terms.alignment import aligned_phrases, check_regions, predict_aligned


def test_the_prediction_is_that_of_the_unet_and_the_loss_that_of_the_chosen_layers():
    unet = make_unet().requires_grad_(False)
    pipeline = SimpleNamespace(unet=unet, identity_channel=None, shading_channel=None)
    torch.manual_seed(0)
    conditions = Conditions(tokens=torch.randn(2, 77, 48), pooled=torch.randn(2, 24), time_ids=time_ids(32, 32, 2))
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    wanted = predict(unet, noisy, timesteps, conditions)
    found, nothing = predict_aligned(pipeline, {}, noisy, timesteps, conditions, layers=())
    assert torch.equal(found, wanted) and nothing.shape == () and nothing == 0
    masks, words = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 77, dtype=torch.bool)
    masks[..., :4], words[..., 2:4] = 1, True
    batch = {"phrase_masks": masks, "phrase_tokens": words, "keep_text": torch.tensor([True, False])}
    layers = layers_at(unet, 2)
    found, loss = predict_aligned(pipeline, batch, noisy, timesteps, conditions, layers=layers)
    assert torch.equal(found, wanted)
    with AttentionCapture(unet, layers) as capture:
        predict(unet, noisy, timesteps, conditions)
        maps = [one[:1] for one in capture.maps.values()]
    torch.testing.assert_close(loss, semantic_alignment_loss(maps, masks[:1].float(), words[:1]))
    assert len(maps) == len(layers) and loss > 0


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
