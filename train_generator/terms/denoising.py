"""The denoising loss: error of the model's prediction."""

from torch import Tensor

from makeup_plugin.losses import noise_prediction_loss
from train_generator.terms.sample import Sample


def denoising_loss(sample: Sample, *, min_snr_gamma: float) -> Tensor:
    """Returns the mean squared error () of the prediction, with min-SNR weights (Hang et al. 2023) unless γ is 0."""
    target = sample.schedule.target(sample.clean, sample.noise, sample.timesteps)
    weights = sample.schedule.min_snr_weights(sample.timesteps, min_snr_gamma) if min_snr_gamma else None
    return noise_prediction_loss(sample.prediction, target, weights)
