"""The facial perceptual loss: whose face the estimated picture shows.

Face-MakeUp describes it (the picture that the UNet's output implies supervises the identity) and does not publish it.
Here the estimated latents are decoded, the face is cut where the target has it by a differentiable warp, and a
differentiable recognizer compares it with the person.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faceclip.faces.align import align_tensor
from makeup_plugin.losses import decode_latents
from train_generator.terms.rows import chosen_rows
from train_generator.terms.sample import Sample


def face_distance(
    images: Tensor,
    landmarks: Tensor,
    identity: Tensor,
    embed: Callable[[Tensor], Tensor],
    *,
    crop_size: int,
    weights: Tensor | None = None,
) -> Tensor:
    """1 − cosine between the faces in images and the persons, the mean of N, or the sum by weights (N,).

    Args:
        images: (N, 3, H, W) RGB in [0, 1], differentiable. landmarks: (N, 5, 2) keypoints of the true images in px of
            `images`: the warp is fixed, gradients flow through the colours. identity: (N, E) of any length.
        embed: differentiable recognizer, (N, 3, crop, crop) in [0, 1] -> (N, E). crop_size: side of the crop, px.
    """
    crops = align_tensor(images.float(), landmarks.float(), crop_size)
    return _mean(1 - F.cosine_similarity(embed(crops).float(), identity.float(), dim=-1), weights)


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (values * weights).sum()


class OtherPeople(nn.Module):
    """Faces of the training split, against which a face in a picture is told from others. `weight`: of that, as a
    multiple of the distance to its own person.

    identity (K, E) of any length, person (K,): constants that move with the module and are in no checkpoint.
    """

    def __init__(self, identity: Tensor, person: Tensor, *, weight: float, temperature: float) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature
        self.register_buffer("identity", F.normalize(identity.float(), dim=-1), persistent=False)
        self.register_buffer("person", person, persistent=False)

    def forward(self, seen: Tensor, identity: Tensor, person: Tensor, weights: Tensor | None = None) -> Tensor:
        """Mean cross-entropy (or the sum by weights (N,)) of the own person of faces seen (N, E), with identity (N, E)
        and number person (N,), among all others; pictures of the same person are none of them."""
        seen = F.normalize(seen.float(), dim=-1)
        own = (seen * F.normalize(identity.float(), dim=-1)).sum(dim=-1, keepdim=True)
        others = (seen @ self.identity.T).masked_fill(person[:, None] == self.person, -torch.inf)
        scores = torch.cat([own, others], dim=1) / self.temperature
        return -_mean(scores.log_softmax(dim=1)[:, 0], weights)


@dataclass(frozen=True, kw_only=True)
class LatentFaces:
    """Compares faces in latents with persons: the autoencoder that decodes them, the recognizer that sees them, and
    others from whom they are distinguished (None: only their own person counts)."""

    vae: nn.Module
    recognizer: nn.Module
    others: OtherPeople | None = None

    def distance(self, latents: Tensor, sample: Sample, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """`face_distance` of latents (N, C, h, w) to the persons of `rows` of a sample, indices (N,), plus the weighted
        loss against others; means, or sums by weights (N,)."""
        faces: list[Tensor] = []

        def embed(crops: Tensor) -> Tensor:
            faces.append(self.recognizer(crops).identity)
            return faces[-1]

        identity = sample.batch["target_identity"][rows]
        distance = face_distance(
            decode_latents(self.vae, latents),
            sample.batch["landmarks"][rows],
            identity,
            embed,
            crop_size=self.recognizer.config.image_size,
            weights=weights,
        )
        if self.others is None:
            return distance
        told = self.others(faces[0], identity, sample.batch["person"][rows], weights)
        return distance + self.others.weight * told


def facial_perceptual_loss(
    sample: Sample, faces: LatentFaces, *, below: int, limit: int, at_once: int, fixed: bool = False
) -> Tensor:
    """1 − cosine to the person in the estimated picture, on samples that know the person, at timesteps up to `below`,
    where the estimate shows a face; 0 without any.

    Of these the `limit` noisiest count: in the others the noisy picture itself shows who it is. at_once: how many are
    decoded at a time. fixed: always `limit` samples (or all of fewer) are decoded, and those that do not count weigh
    nothing (`train_generator.terms.rows`).
    """
    keep = (sample.timesteps <= below) & sample.knows_person
    ranked = sample.timesteps.masked_fill(~keep, -1).argsort(descending=True)[:limit]
    chosen = chosen_rows(ranked, keep, fixed=fixed)
    if len(chosen) == 0:
        return sample.prediction.sum() * 0.0
    # The estimate of what does not count is taken as if it had little noise: at no signal it would be infinite.
    sample = replace(sample, timesteps=sample.timesteps.where(keep, 0))
    total = sample.prediction.new_zeros(())
    for part in chosen.split(at_once):
        total = total + faces.distance(sample.estimate(part.rows), sample, part.rows, part.weights)
    return total
