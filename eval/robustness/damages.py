"""How much of the identity stays when the reference photo is damaged or attacked.

Damages are functions of a picture and a strength; attacks move each pixel by at most ε against a recognizer (FGSM,
Goodfellow et al. 2015, arXiv:1412.6572; PGD, Madry et al. 2018, arXiv:1706.06083). An attack on one's own photo is how
people protect it; these functions measure what it does to encoder, retrieval and pipeline.
"""

import io
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Picture = NDArray[np.uint8]
Damage = Callable[[Picture, float, NDArray[np.floating]], Picture]


def jpeg(image: Picture, quality: float, landmarks: NDArray[np.floating]) -> Picture:
    """Returns the picture compressed at a quality of 1 … 95 and decoded."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer).convert("RGB"))


def blur(image: Picture, sigma: float, landmarks: NDArray[np.floating]) -> Picture:
    """Blurs by a Gaussian of `sigma` px; 0 changes nothing."""
    return image.copy() if sigma <= 0 else cv2.GaussianBlur(image, (0, 0), sigma)


def noise(image: Picture, sigma: float, landmarks: NDArray[np.floating]) -> Picture:
    """Adds Gaussian noise with a standard deviation of `sigma` levels of 255, the same for the same size."""
    drawn = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(np.round(image + drawn), 0, 255).astype(np.uint8)


def resolution(image: Picture, factor: float, landmarks: NDArray[np.floating]) -> Picture:
    """Returns the picture made smaller by `factor` and as large as before again."""
    height, width = image.shape[:2]
    small = max(1, round(width / factor)), max(1, round(height / factor))
    return cv2.resize(
        cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=cv2.INTER_CUBIC
    )


def mask(image: Picture, share: float, landmarks: NDArray[np.floating]) -> Picture:
    """Adds a pale mask over nose and mouth, `share` of its full height, by the five points (5, 2) px."""
    eyes, nose, mouth = landmarks[:2].mean(axis=0), landmarks[2], landmarks[3:].mean(axis=0)
    across, down = (landmarks[1] - landmarks[0]) * 0.9, (mouth - eyes) * 0.9
    top = mouth + down * 0.6 - (mouth + down * 0.6 - nose) * share
    corners = np.array(
        [top - across, top + across, mouth + down * 0.6 + across * 0.7, mouth + down * 0.6 - across * 0.7]
    )
    return (
        cv2.fillConvexPoly(image.copy(), np.round(corners).astype(np.int32), (205, 222, 232))
        if share > 0
        else image.copy()
    )


def sunglasses(image: Picture, scale: float, landmarks: NDArray[np.floating]) -> Picture:
    """Adds black discs over the eyes, of `scale` times a third of the distance between the eyes as their radius."""
    left, right = landmarks[0], landmarks[1]
    radius = round(scale * float(np.linalg.norm(right - left)) / 3)
    result = image.copy()
    for eye in (left, right):
        if radius > 0:
            cv2.circle(result, tuple(int(v) for v in np.round(eye)), radius, (10, 10, 10), -1)
    return result


DAMAGES: Mapping[str, tuple[Damage, tuple[float, ...]]] = {
    "JPEG quality": (jpeg, (95, 70, 50, 30, 15, 5)),
    "blur, px": (blur, (0, 0.5, 1, 2, 4)),
    "noise, levels": (noise, (0, 4, 8, 16, 32)),
    "resolution, times smaller": (resolution, (1, 2, 4, 8)),
    "mask, share": (mask, (0, 0.5, 1)),
    "sunglasses, size": (sunglasses, (0, 0.5, 1)),
}


def fgsm(images: Tensor, embed: Callable[[Tensor], Tensor], epsilon: float) -> Tensor:
    """Takes one signed step away from the pictures' own identity. Arguments and result: see `pgd`."""
    return pgd(images, embed, epsilon, steps=1, step_size=epsilon)


def pgd(
    images: Tensor,
    embed: Callable[[Tensor], Tensor],
    epsilon: float,
    *,
    steps: int = 10,
    step_size: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Returns pictures (N, 3, H, W) in [0, 1] moved by at most `epsilon` per pixel so that their embedding leaves the
    person.

    embed: differentiable, pictures → (N, D). step_size: default 2.5 ε / steps. The start is drawn within a hundredth of
    ε, because the gradient of a cosine at its maximum is zero. Raises ValueError for an ε outside (0, 1).
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be between 0 and 1, as 8 / 255, got {epsilon}")
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    with torch.no_grad():
        own = F.normalize(embed(images).float(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    start = (torch.rand(images.shape, generator=generator) * 2 - 1).to(images) * epsilon / 100
    moved = (images + start).clamp(0, 1)
    for _ in range(steps):
        moved = moved.detach().requires_grad_(True)
        likeness = (F.normalize(embed(moved).float(), dim=1) * own).sum()
        (gradient,) = torch.autograd.grad(likeness, moved)
        with torch.no_grad():
            moved = moved - step_size * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, images - epsilon), images + epsilon).clamp(0, 1)
    return moved.detach()
