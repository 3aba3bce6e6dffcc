"""Losses by a network that reads noisy latents: they apply at all noise levels and need no decoding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from makeup_plugin.latent_recognizer import LatentRecognizer, read_estimates
from makeup_plugin.losses import IGNORED, attribute_loss, feature_distance
from train_generator.terms.sample import Sample


def latent_losses(
    sample: Sample, reader: LatentRecognizer, generator: torch.Generator, *, attributes: bool
) -> dict[str, Tensor]:
    """Returns the losses of the estimated latents by name.

    latent_identity: mean of 1 − cosine to the person, over samples that know the person. latent_features: distance of
    the reader's features to those of the true latents under the same noise. latent_attributes (with `attributes`):
    cross-entropy of the attributes that the text names.
    """
    seen, true = read_estimates(
        reader, sample.schedule, sample.prediction, sample.noisy, sample.clean, sample.timesteps, generator
    )
    distance = 1 - F.cosine_similarity(seen.identity, sample.batch["target_identity"].float(), dim=-1)
    losses = {
        "latent_identity": (distance * sample.knows_person).sum() / sample.knows_person.sum().clamp(min=1),
        "latent_features": feature_distance(seen.features, true.features),
    }
    if attributes:
        classes = sample.batch["classes"].masked_fill(~sample.batch["named"], IGNORED)
        losses["latent_attributes"] = attribute_loss(list(seen.attributes.values()), classes)
    return losses
