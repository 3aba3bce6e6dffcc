"""Five-point face alignment: the ArcFace template, the similarity transform, and two ways to warp.

Coordinates are pixels (x, y) with pixel centers at integers (OpenCV's and insightface's convention).
Landmarks are ordered image-left eye, image-right eye, nose tip, image-left and image-right mouth corner.

The canonical crop of this project is 448 px square with the template × 4, which equals insightface's
``norm_crop(image, landmarks, image_size=448)``. A crop of any other size shows the face where bilinear resizing
(``align_corners=False``) of the canonical crop shows it, so that a model trained on small crops and a pipeline
that hands out 448 px crops see it at the same place; `encoder_crop` is what an encoder sees of the canonical crop, to
the grey value. ``reference_size=size`` gives insightface's ``norm_crop`` at that size instead (about .4 px away at
112). Where several pixels of the picture fall on one of the crop, crops have their mean, norm_crop one of them.
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from faceclip.errors import BadLandmarksError

CROP_SIZE = 448
# Heads turned by 60° reach .10; left and right exchanged, or x and y, give .18 and more (both measured on renders).
MAX_MISFIT = 0.15
MAX_FINER = 8  # a crop is made at this many times its size at most, and reduced
MAX_TILT = 60.0  # degrees that a head may be tilted in a picture that counts as upright
MIN_CROP_SIDE = 12.0  # least side of the aligned crop in pixels of the picture

# insightface's `arcface_dst`, for a crop of 112 px.
ARCFACE_TEMPLATE_112 = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    dtype=np.float32,
)


def template(size: int, *, reference_size: int = CROP_SIZE, view: float = 1.0) -> NDArray[np.float32]:
    """Returns the template points (5, 2) in a `size` px crop, as seen after resizing a `reference_size` px crop.

    `view` is the side of what is seen in sides of the ArcFace crop, which cuts chin and forehead; same middle.
    """
    if size < 1 or reference_size < 1 or view <= 0:
        sizes = f"got size={size}, reference_size={reference_size} and view={view}"
        raise ValueError(f"crop sizes must be positive, {sizes}")
    points = ARCFACE_TEMPLATE_112.astype(np.float64) * (reference_size / 112)
    fractions = ((points + 0.5) / reference_size - 0.5) / view + 0.5
    return (fractions * size - 0.5).astype(np.float32)


def similarity_transform(
    landmarks: Tensor, size: int = CROP_SIZE, *, reference_size: int = CROP_SIZE, view: float = 1.0
) -> Tensor:
    """Returns least-squares rotation, uniform scale and shift (…, 2, 3) from landmarks (…, 5, 2) to the template."""
    if landmarks.shape[-2:] != (5, 2):
        raise ValueError(f"landmarks must have shape (…, 5, 2), got {tuple(landmarks.shape)}")
    target = torch.as_tensor(template(size, reference_size=reference_size, view=view), dtype=landmarks.dtype)
    target = target.to(landmarks.device, non_blocking=True)  # a GPU is not waited for
    return similarity_between(landmarks, target)


def similarity_between(source: Tensor, target: Tensor) -> Tensor:
    """Returns the least-squares rotation, uniform scale and shift (…, 2, 3) from points (…, N, 2) to others.

    Umeyama's problem (1991) without reflection has a closed form in the plane: with points as complex numbers
    and means removed, minimize Σ|a·z − w|², hence a = Σ conj(z)·w / Σ|z|²: no SVD, and always a finite
    gradient.
    """
    source_mean, target_mean = source.mean(dim=-2), target.mean(dim=-2)
    z, w = source - source_mean.unsqueeze(-2), target - target_mean.unsqueeze(-2)
    energy = z.square().sum(dim=(-2, -1)).clamp_min(1e-12)
    cosine = (z * w).sum(dim=(-2, -1)) / energy
    sine = (z[..., 0] * w[..., 1] - z[..., 1] * w[..., 0]).sum(dim=-1) / energy
    linear = torch.stack([torch.stack([cosine, -sine], dim=-1), torch.stack([sine, cosine], dim=-1)], dim=-2)
    # Sums instead of matrix products: autocast would compute `@` in bf16, too coarse for a pixel position.
    shift = target_mean - (linear * source_mean.unsqueeze(-2)).sum(dim=-1)
    return torch.cat([linear, shift.unsqueeze(-1)], dim=-1)


def crop_side(landmarks: NDArray[np.floating]) -> float:
    """Returns the side of the aligned face crop in pixels of the picture that `landmarks` (5, 2) lie in."""
    matrix = similarity_transform(torch.as_tensor(landmarks), CROP_SIZE).numpy()
    return CROP_SIZE / max(float(np.hypot(*matrix[:, 0])), 1e-9)


def tilt(landmarks: NDArray[np.floating]) -> float:
    """Returns by how many degrees landmarks (5, 2) are turned clockwise in their picture, from -180 to 180."""
    matrix = similarity_transform(torch.as_tensor(np.asarray(landmarks, np.float64)), CROP_SIZE).numpy()
    return -math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))


def quarter_turn(landmarks: NDArray[np.floating]) -> int:
    """Returns the quarters by which the picture must be turned counterclockwise (`np.rot90`) for the face to stand
    upright: 0 to 3.

    A head that is tilted by up to `MAX_TILT` is upright.
    """
    angle = tilt(landmarks)
    return 0 if abs(angle) <= MAX_TILT else round(angle / 90) % 4


def turn_points(points: NDArray[np.floating], turn: int, height: int, width: int) -> NDArray[np.floating]:
    """Returns where points (…, 2) px of a picture of this size lie after `np.rot90(picture, turn)`."""
    x, y = points[..., 0], points[..., 1]
    turned = ((x, y), (y, width - 1 - x), (width - 1 - x, height - 1 - y), (height - 1 - y, x))[turn % 4]
    return np.stack(turned, axis=-1)


def stand_up(
    image: NDArray[np.uint8], landmarks: NDArray[np.floating]
) -> tuple[NDArray[np.uint8], NDArray[np.floating]]:
    """Turns the picture (H, W, 3) and the landmarks (5, 2) by the quarters that make the face stand upright."""
    turn = quarter_turn(landmarks)
    if not turn:
        return image, landmarks
    return np.ascontiguousarray(np.rot90(image, turn)), turn_points(landmarks, turn, *image.shape[:2])


def template_misfit(landmarks: NDArray[np.floating]) -> float:
    """Returns the root mean square distance of aligned landmarks (5, 2) from the template, in sides of the crop."""
    matrix = similarity_transform(torch.as_tensor(landmarks), CROP_SIZE).numpy()
    distance = landmarks @ matrix[:, :2].T + matrix[:, 2] - template(CROP_SIZE)
    return float(np.sqrt(np.square(distance).sum(axis=1).mean())) / CROP_SIZE


def check_landmarks(landmarks: NDArray[np.floating], height: int, width: int, name: str) -> None:
    """Raises BadLandmarksError, which gives `name`, for points (5, 2) px that cannot be those of a face in a picture of
    this size: their center lies outside, or they are not arranged as those of a face that is turned by up to 75° or so.
    """
    where = f"{name}: landmarks {landmarks.round(1).tolist()}"
    center = landmarks.mean(axis=0)
    inside = ((center >= 0) & (center < [width, height])).all()
    if not inside or not ((landmarks > [-width, -height]) & (landmarks < [2 * width, 2 * height])).all():
        raise BadLandmarksError(f"{where} lie outside of {width}×{height}: give pixels of this picture")
    if (misfit := template_misfit(landmarks)) > MAX_MISFIT:
        raise BadLandmarksError(
            f"{where} are no face's eyes, nose tip and mouth corners, each from image left to right "
            f"(misfit {misfit:.2f}); another order, or y before x, or a head turned by more than 75°?"
        )


def invert_affine(matrix: Tensor) -> Tensor:
    """Returns the inverse of affine maps (…, 2, 3), as (…, 2, 3)."""
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    determinant = a * d - b * c
    rows = [torch.stack([d, -b], dim=-1), torch.stack([-c, a], dim=-1)]
    linear = torch.stack(rows, dim=-2) / determinant[..., None, None]
    shift = -(linear * matrix[..., 2].unsqueeze(-2)).sum(dim=-1)
    return torch.cat([linear, shift.unsqueeze(-1)], dim=-1)


def apply_affine(matrix: Tensor, points: Tensor) -> Tensor:
    """Maps points (…, N, 2) by affine maps (…, 2, 3)."""
    x, y = points[..., :1], points[..., 1:]
    columns = matrix.unsqueeze(-3)
    return x * columns[..., 0] + y * columns[..., 1] + columns[..., 2]


def align_face(
    image: NDArray[np.uint8],
    landmarks: NDArray[np.floating],
    size: int = CROP_SIZE,
    *,
    reference_size: int = CROP_SIZE,
    view: float = 1.0,
) -> NDArray[np.uint8]:
    """Warps one uint8 RGB image (H, W, 3) to its aligned crop (size, size, 3); black outside the image.

    Bilinear; where the image has several pixels for one of the crop, their mean.
    """
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"image must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    points = torch.tensor(np.array(landmarks, dtype=np.float64))
    matrix = similarity_transform(points, size, reference_size=reference_size, view=view)
    finer = min(max(int(1 / max(float(matrix[:, 0].norm()), 1e-6)), 1), MAX_FINER)
    if finer > 1:
        matrix = similarity_transform(points, size * finer, reference_size=reference_size, view=view)
    crop = cv2.warpAffine(image, matrix.numpy(), (size * finer, size * finer), flags=cv2.INTER_LINEAR, borderValue=0)
    return crop if finer == 1 else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


def encoder_crop(image: NDArray[np.uint8], landmarks: NDArray[np.floating], size: int) -> NDArray[np.uint8]:
    """Returns the canonical crop as a face encoder of `size` px sees it, rounded to 8 bits: (size, size, 3).

    Encoders sample the canonical crop that the pipeline gives them. For a face that is more than twice as large as
    `size`, `align_face` at this size would average pixels and give another picture. For smaller faces both are equal,
    and the crop is made directly.
    """
    if crop_side(np.asarray(landmarks, np.float64)) < 2 * size:
        return align_face(image, landmarks, size)
    crop = torch.from_numpy(align_face(image, landmarks)).permute(2, 0, 1)[None].float()
    small = F.interpolate(crop, (size, size), mode="bilinear", align_corners=False)
    return small[0].round().to(torch.uint8).permute(1, 2, 0).numpy()


def align_tensor(
    images: Tensor, landmarks: Tensor, size: int = CROP_SIZE, *, reference_size: int = CROP_SIZE
) -> Tensor:
    """Warps images (B, 3, H, W) to crops (B, 3, size, size), differentiable in images and landmarks (B, 5, 2).

    Bilinear, zeros outside the image; the map of `align_face` to within OpenCV's 1/32 px coordinate rounding.
    Coordinates are always fp32; the crops have the dtype of the images.
    """
    if images.ndim != 4 or landmarks.shape != (images.shape[0], 5, 2):
        raise ValueError(
            "expected images (B, 3, H, W) and landmarks (B, 5, 2), "
            f"got {tuple(images.shape)} and {tuple(landmarks.shape)}"
        )
    height, width = images.shape[-2:]
    landmarks = landmarks.float()
    inverse = invert_affine(similarity_transform(landmarks, size, reference_size=reference_size))
    axis = torch.arange(size, dtype=landmarks.dtype, device=landmarks.device)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).reshape(1, size * size, 2)
    extent = torch.tensor([width, height], dtype=landmarks.dtype).to(landmarks.device, non_blocking=True)
    source = (2 * apply_affine(inverse, grid) + 1) / extent - 1
    source = source.reshape(-1, size, size, 2)
    crops = F.grid_sample(images.float(), source, mode="bilinear", padding_mode="zeros", align_corners=False)
    return crops.to(images.dtype)
