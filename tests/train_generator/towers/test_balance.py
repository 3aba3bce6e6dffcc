"""Balanced latents: the same restored portraits, other weights of the channels; and a decoder that trains alone."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL

from faceclip.errors import ConfigError
from train_generator.towers import vae
from train_generator.towers.balance import balance_latents, principal_scaling

TRAINER = ["trainer.batch_size=4", "trainer.warmup_steps=1", "trainer.log_every=0", "trainer.save_every=0"]
MODEL = ["size=32", "model.widths=[8, 8, 16]", "model.groups=4", "model.latent_channels=4", "half=no"]


def test_scaling_by_hand():
    """Two channels that vary along the diagonals: variances 8 and 2 become their square roots at exponent 1/2."""
    means = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [1.0, -1.0], [-1.0, 1.0]])[:, :, None, None] + 3
    transform, centre = principal_scaling(means, 0.5)
    torch.testing.assert_close(centre, torch.full((2,), 3.0, dtype=torch.float64))
    scaled = transform @ (means[:, :, 0, 0].double() - centre[None]).T
    variances = torch.tensor([4 / 3, 16 / 3]).double()  # of the two diagonals, over n − 1
    torch.testing.assert_close(torch.cov(scaled), torch.diag(variances.sqrt()), atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="balance"):
        principal_scaling(torch.ones(4, 2, 1, 1), 0.5)


def test_a_balanced_autoencoder_restores_as_before():
    torch.manual_seed(0)
    model = vae.make_model(vae.AutoencoderConfig(widths=[8, 16], latent_channels=4, groups=4), 16).eval()
    images = torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8).numpy()
    balanced = copy.deepcopy(model)
    means = vae.encode_mean(model, images)
    balance_latents(balanced, means, vae.mean_variance(model, images), 0.5)
    latents = vae.encode_mean(balanced, images)
    with torch.no_grad():
        torch.testing.assert_close(balanced.decode(latents).sample, model.decode(means).sample, atol=2e-5, rtol=1e-4)
    before, after = (torch.cov(z.transpose(0, 1).flatten(1)) for z in (means, latents))
    torch.testing.assert_close(after.diag(), torch.linalg.eigvalsh(before).sqrt(), atol=1e-3, rtol=1e-2)
    assert (after - torch.diag(after.diag())).abs().max() < 1e-3
    # Noise of the posterior keeps its size: what it adds in the old latents is what it added before, in sum.
    transform, _ = principal_scaling(means, 0.5)
    spread = vae.mean_variance(balanced, images).double()
    expected = transform.square() @ vae.mean_variance(model, images).double()
    torch.testing.assert_close(spread, expected, atol=1e-6, rtol=1e-3)


def test_the_export_is_balanced_and_its_decoder_trains_alone(tiny_dataset, tmp_path):
    words = [f"data={tiny_dataset}", "trainer.steps=2", *TRAINER, *MODEL]
    assert vae.main([*words, f"out={tmp_path / 'a'}", "balance=0.5"]) == 0
    first = AutoencoderKL.from_pretrained(tmp_path / "a" / "export")
    assert not torch.equal(first.quant_conv.weight, torch.zeros_like(first.quant_conv.weight))
    assert not first.quant_conv.weight[4:].any()  # one posterior variance for all portraits
    more = [*words, f"init={tmp_path / 'a' / 'export'}", "decoder_only=yes"]
    assert vae.main([*more, f"out={tmp_path / 'b'}"]) == 0
    second = AutoencoderKL.from_pretrained(tmp_path / "b" / "export")
    assert second.config.scaling_factor == first.config.scaling_factor
    changed = {n for n, v in second.state_dict().items() if not torch.equal(v, first.state_dict()[n])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


@pytest.mark.parametrize(
    "words", [["balance=1.5"], ["decoder_only=yes"], ["decoder_only=yes", "init=x", "balance=0.5"]]
)
def test_settings_that_do_not_fit(words, tiny_dataset, tmp_path, capsys):
    assert vae.main([f"data={tiny_dataset}", f"out={tmp_path}", *MODEL, *words]) == 2
    assert words[0].split("=")[0] in capsys.readouterr().err
