"""Prior preservation: from words alone the trained model predicts what the base does.

DreamBooth (Ruiz et al. 2023) draws pictures by the base and trains on them too. Here the base itself, which LoRA leaves
unchanged below, says what it predicts for the same noisy latents, so that nothing is drawn beforehand.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from makeup_plugin.conditioning import predict
from train_generator.terms.sample import Sample


def prior_loss(sample: Sample, unet: UNet2DConditionModel) -> Tensor:
    """Mean squared distance of the prediction from the base's, on samples that see words alone (no face, no identity,
    no shading map); 0 without any. unet: with LoRA, below which the base's weights lie unchanged."""
    alone = ~(sample.knows_person | sample.batch["keep_shading"])
    rows = alone.nonzero().flatten()
    if len(rows) == 0:
        return sample.prediction.sum() * 0.0
    with torch.no_grad(), without_lora(unet):
        base = predict(unet, sample.noisy[rows], sample.timesteps[rows], sample.conditions.take(rows))
    return (sample.prediction[rows].float() - base.float()).square().mean()


@contextmanager
def without_lora(unet: UNet2DConditionModel) -> Iterator[None]:
    """Context in which the UNet computes what it did before it got LoRA."""
    unet.disable_lora()
    try:
        yield
    finally:
        unet.enable_lora()
