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
    model = LatentRecognizer(4, 8, (16, 32), 1, 24, {"hat": ["none", "cap", "beanie"], "beard": ["no", "yes"]}).eval()
    latents = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        found = model(latents, torch.tensor([10, 10]))
        assert found.identity.shape == (2, 24) and found.attributes["hat"].shape == (2, 3)
        assert [tuple(level.shape) for level in found.features] == [(2, 16, 8, 8), (2, 32, 4, 4)]
        assert not torch.allclose(found.identity, model(latents, torch.tensor([900, 900])).identity)
        model.save_pretrained(tmp_path)
        again = LatentRecognizer.from_pretrained(tmp_path)
        assert list(again.attributes) == list(model.attributes) == ["beard", "hat"]
        same = again(latents, torch.tensor([10, 10]))
        assert torch.equal(found.identity, same.identity)
        assert torch.equal(found.attributes["hat"], same.attributes["hat"])
