"""Prior preservation: from words alone, the trained model shall predict what the base predicts.

DreamBooth (Ruiz et al. 2023) draws pictures by the base and trains on them too. Here the base itself, which is
unchanged under LoRA, predicts from the same noisy latents, so that nothing has to be drawn beforehand.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from makeup_plugin.conditioning import predict
from train_generator.terms.rows import chosen_rows
from train_generator.terms.sample import Sample


def prior_loss(sample: Sample, unet: UNet2DConditionModel, *, fixed: bool = False) -> Tensor:
    """Returns the mean squared distance of the prediction from the base's, on samples with words alone (no face, no
    identity, no shading map), or 0 if there are none.

    unet: has LoRA, under which the base's weights are unchanged. fixed: the base predicts for all samples, and those
    that do not count have weight 0 (`train_generator.terms.rows`).
    """
    alone = ~(sample.knows_person | sample.batch["keep_shading"])
    every = torch.arange(len(sample), device=alone.device)
    chosen = chosen_rows(every, alone, fixed=fixed)
    if len(chosen) == 0:
        return sample.prediction.sum() * 0.0
    rows = chosen.rows
    with torch.no_grad(), without_lora(unet):
        base = predict(unet, sample.noisy[rows], sample.timesteps[rows], sample.conditions.take(rows))
    errors = (sample.prediction[rows].float() - base.float()).square().flatten(1).mean(dim=1)
    return (errors * chosen.weights).sum()


@contextmanager
def without_lora(unet: UNet2DConditionModel) -> Iterator[None]:
    """Context in which the UNet computes without its LoRA."""
    unet.disable_lora()
    try:
        yield
    finally:
        unet.enable_lora()
