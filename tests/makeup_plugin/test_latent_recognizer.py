"""Networks that read noisy latents: shapes, and that they come back from disk."""

import torch

from makeup_plugin.latent_recognizer import LatentRecognizer, LatentTrunk


def test_trunk_halves_its_grid_level_by_level():
    trunk = LatentTrunk((4, 16), (16, 32, 48), depth=2)
    features = trunk(torch.randn(3, 4, 16, 16), torch.tensor([0, 500, 999]))
    assert [tuple(level.shape[1:]) for level in features] == [(16, 16, 16), (32, 8, 8), (48, 4, 4)]
    assert trunk.features == 48 * 4 * 4


def test_recognizer_knows_the_noise_level_and_comes_back(tmp_path):
    torch.manual_seed(0)
    model = LatentRecognizer(4, 8, (16, 32), 1, 24).eval()
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        found = model(latents, torch.tensor([10, 10]))
        assert found.shape == (2, 24)
        assert not torch.allclose(found, model(latents, torch.tensor([900, 900])))
        model.save_pretrained(tmp_path)
        again = LatentRecognizer.from_pretrained(tmp_path)
        assert torch.equal(found, again(latents, torch.tensor([10, 10])))
