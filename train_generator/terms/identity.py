"""The facial perceptual loss: whose face the estimated picture shows.

Face-MakeUp describes it (the picture that the UNet's output implies supervises the identity) and does not publish it.
Here the estimated latents are decoded, the face is cut where the target has it by a differentiable warp, and a
differentiable recognizer compares it with the person.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from faceclip.faces.align import align_tensor
from makeup_plugin.losses import decode_latents
from train_generator.terms.sample import Sample


def face_distance(
    images: Tensor, landmarks: Tensor, identity: Tensor, embed: Callable[[Tensor], Tensor], *, crop_size: int
) -> Tensor:
    """1 − cosine between the faces in images and the persons, the mean of N.

    Args:
        images: (N, 3, H, W) RGB in [0, 1], differentiable. landmarks: (N, 5, 2) keypoints of the true images in px of
            `images`: the warp is fixed, gradients flow through the colours. identity: (N, E) of any length.
        embed: differentiable recognizer, (N, 3, crop, crop) in [0, 1] -> (N, E). crop_size: side of the crop, px.
    """
    crops = align_tensor(images.float(), landmarks.float(), crop_size)
    return (1 - F.cosine_similarity(embed(crops).float(), identity.float(), dim=-1)).mean()


@dataclass(frozen=True, kw_only=True)
class LatentFaces:
    """Compares faces in latents with persons: the autoencoder that decodes them, and the recognizer that sees them."""

    vae: nn.Module
    recognizer: nn.Module

    def distance(self, latents: Tensor, sample: Sample, rows: Tensor) -> Tensor:
        """`face_distance` of latents (N, C, h, w) to the persons of `rows` of a sample, indices (N,)."""
        return face_distance(
            decode_latents(self.vae, latents),
            sample.batch["landmarks"][rows],
            sample.batch["target_identity"][rows],
            lambda crops: self.recognizer(crops).identity,
            crop_size=self.recognizer.config.image_size,
        )


def facial_perceptual_loss(sample: Sample, faces: LatentFaces, *, below: int, limit: int, at_once: int) -> Tensor:
    """1 − cosine to the person in the estimated picture, on samples that know the person, at timesteps up to `below`,
    where the estimate shows a face; 0 without any.

    Of these the `limit` noisiest count: in the others the noisy picture itself shows who it is. at_once: how many are
    decoded at a time.
    """
    keep = (sample.timesteps <= below) & sample.knows_person
    rows = sample.timesteps.masked_fill(~keep, -1).argsort(descending=True)[:limit]
    rows = rows[keep[rows]]
    if len(rows) == 0:
        return sample.prediction.sum() * 0.0
    total = sample.prediction.new_zeros(())
    for part in rows.split(at_once):
        total = total + faces.distance(sample.estimate(part), sample, part) * (len(part) / len(rows))
    return total
