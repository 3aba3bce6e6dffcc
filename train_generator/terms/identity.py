"""The facial perceptual loss: identity of the face in the estimated picture.

Face-MakeUp describes this loss (the picture that the UNet's output implies supervises the identity) but does not
publish it. Here the estimated latents are decoded, a differentiable warp cuts the face where the target has it, and a
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
    """Returns 1 − cosine between the faces in images and the persons: the mean over N, or the sum with weights (N,).

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
    """Faces of the training split, from which the face in a picture must be distinguished.

    identity (K, E) of any length and person (K,) are constants that move with the module and are in no checkpoint.
    weight: of this loss, as a multiple of the distance to the own person.
    """

    def __init__(self, identity: Tensor, person: Tensor, *, weight: float, temperature: float) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature
        self.register_buffer("identity", F.normalize(identity.float(), dim=-1), persistent=False)
        self.register_buffer("person", person, persistent=False)

    def forward(self, seen: Tensor, identity: Tensor, person: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns the mean cross-entropy, or the sum with weights (N,), of each face's own person among all others.

        seen (N, E): embeddings of faces. identity (N, E) and person (N,): their own persons. Pictures of the same
        person are not among the others.
        """
        seen = F.normalize(seen.float(), dim=-1)
        own = (seen * F.normalize(identity.float(), dim=-1)).sum(dim=-1, keepdim=True)
        others = (seen @ self.identity.T).masked_fill(person[:, None] == self.person, -torch.inf)
        scores = torch.cat([own, others], dim=1) / self.temperature
        return -_mean(scores.log_softmax(dim=1)[:, 0], weights)


@dataclass(frozen=True, kw_only=True)
class LatentFaces:
    """Compares faces in latents with persons.

    vae: decodes the latents. recognizer: embeds the faces. others: people to distinguish them from; None: only the own
    person counts.
    """

    vae: nn.Module
    recognizer: nn.Module
    others: OtherPeople | None = None

    def distance(self, latents: Tensor, sample: Sample, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns the `face_distance` of latents (N, C, h, w) to the persons of `rows` (N,) of a sample, plus the
        weighted loss against others; both are means, or sums with weights (N,)."""
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
    """Returns the mean of 1 − cosine to the person in the estimated picture, or 0 if no sample counts.

    Samples count if they know the person and have a timestep of at most `below`, at which the estimate shows a face. Of
    these the `limit` noisiest are taken, because in the others the noisy picture itself shows the person. at_once:
    samples decoded at a time. fixed: always decode `limit` samples (or all of fewer); those that do not count have
    weight 0 (`train_generator.terms.rows`).
    """
    keep = (sample.timesteps <= below) & sample.knows_person
    ranked = sample.timesteps.masked_fill(~keep, -1).argsort(descending=True)[:limit]
    chosen = chosen_rows(ranked, keep, fixed=fixed)
    if len(chosen) == 0:
        return sample.prediction.sum() * 0.0
    # Samples that do not count are estimated as if at timestep 0: without signal their estimate would be infinite.
    sample = replace(sample, timesteps=sample.timesteps.where(keep, 0))
    total = sample.prediction.new_zeros(())
    for part in chosen.split(at_once):
        total = total + faces.distance(sample.estimate(part.rows), sample, part.rows, part.weights)
    return total
