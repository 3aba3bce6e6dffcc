"""The denoising loss by hand."""

import pytest
import torch

from tests.train_generator.terms.samples import sample_of
from train_generator.terms.denoising import denoising_loss


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_error_is_against_what_should_be_predicted(kind):
    sample = sample_of([100, 700], [True, True], kind)
    alphas = sample.schedule.alphas_cumprod[sample.timesteps].view(-1, 1, 1, 1)
    velocity = alphas.sqrt() * sample.noise - (1 - alphas).sqrt() * sample.clean
    target = {"epsilon": sample.noise, "sample": sample.clean, "v_prediction": velocity}[kind]
    errors = (sample.prediction - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(denoising_loss(sample, min_snr_gamma=0.0), errors.mean())
    snr = (alphas / (1 - alphas)).flatten()
    divisor = {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[kind]
    weighted = (errors * snr.clamp(max=2.0) / divisor).mean()
    torch.testing.assert_close(denoising_loss(sample, min_snr_gamma=2.0), weighted)
