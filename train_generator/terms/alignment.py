"""Semantic alignment (Face-MakeUp): trains the attention of words to cover the regions that they describe.

The attention exists only while the UNet runs, so the loss is computed together with the prediction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.attention import AttentionCapture
from makeup_plugin.conditioning import Conditions, predict
from makeup_plugin.losses import semantic_alignment_loss


def predict_aligned(
    pipeline: FaceMakeUpPipeline,
    batch: Mapping[str, Tensor],
    noisy: Tensor,
    timesteps: Tensor,
    conditions: Conditions,
    *,
    layers: Sequence[str],
    with_map: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the UNet's prediction (B, C, h, w), and the alignment loss of the attention in `layers`: 0 without any.

    with_map: indices of the samples that keep their shading map; the shading channel runs on these alone, or on all
    samples if it is None.
    """
    channels: dict[str, Any] = {"identity_channel": pipeline.identity_channel}
    channels |= {"shading_channel": pipeline.shading_channel, "shading_rows": with_map}
    if not layers:
        return predict(pipeline.unet, noisy, timesteps, conditions, **channels), noisy.new_zeros(())
    with AttentionCapture(pipeline.unet, layers) as capture:
        prediction = predict(pipeline.unet, noisy, timesteps, conditions, **channels)
        alignment = semantic_alignment_loss(
            capture.maps.values(), batch["phrase_masks"].float(), batch["phrase_tokens"], batch["keep_text"]
        )
    return prediction, alignment


def check_regions(regions: object | None, weight: float, data: str) -> None:
    """Raises ConfigError if the alignment loss has a weight and the data have no regions."""
    if weight and regions is None:
        raise ConfigError(
            f"loss.alignment={weight:g}: {data} has no region maps, so that no words can be compared with what they "
            "describe: set loss.alignment=0, or import the photos with captions=made"
        )


def aligned_phrases(batch: Mapping[str, Tensor], factor: int) -> Tensor:
    """Counts the phrases () over which the alignment loss of a batch is the mean.

    They have words, and their region is visible on the attention's grid, which is `factor` times smaller than the
    latents.
    """
    height, width = (-(-size // factor) for size in batch["latents"].shape[-2:])
    seen = F.adaptive_avg_pool2d(batch["phrase_masks"].float(), (height, width)).amax(dim=(2, 3)) >= 0.5
    return (seen & batch["phrase_tokens"].any(dim=-1) & batch["keep_text"][:, None]).sum()
