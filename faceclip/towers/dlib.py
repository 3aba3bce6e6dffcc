"""dlib's face recognizer as a torch module: a ResNet (King 2017, CC0) for photographs, in the place of `FaceViT`.

Its file is in the package `face_recognition_models` (extra `photos`); the landmark models there have other terms and
are not used. The module is batched and differentiable, and equals dlib's own output on the same 150 px chip.

dlib cuts the chip by the corners of the eyes and the base of the nose. Our five points are the middles of the eyes, the
tip of the nose and the corners of the mouth: `chip_points` are where the mean face of dlib's chips has these. On a
chip, the face is therefore where dlib has it only to within a few pixels.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from faceclip.faces.align import invert_affine, similarity_between, template
from faceclip.storage.loading import StrictlyLoaded
from faceclip.storage.packaged import packaged_file, read_published
from faceclip.towers.dlib_file import DlibNetwork, parse_dlib_network
from faceclip.towers.face import FaceFeatures, sine_positions

SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
CHIP = 150  # px
# Where the mean face of dlib's chips has our five points, in sides of its box; the chip adds a quarter on each side.
_MEAN_FACE = ((0.2273, 0.2214), (0.7528, 0.2214), (0.4901, 0.5156), (0.2541, 0.7802), (0.7261, 0.7802))
_PADDING = 0.25
# Channels and number of the residual blocks of each stage; from one stage to the next the map is halved.
_STAGES = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
GRID, WIDTH, EMBEDDING = 2, 256, 128


def chip_points(size: int = CHIP) -> Tensor:
    """Returns our five points (5, 2) px on a chip of dlib's."""
    return mean_face(size, _PADDING)


def mean_face(size: int, padding: float) -> Tensor:
    """Returns our five points (5, 2) px on dlib's mean face in `size` px, with `padding` sides of its box around it."""
    return (torch.tensor(_MEAN_FACE) + padding) / (1 + 2 * padding) * size


class _Block(nn.Module):
    """Two convolutions beside a shortcut; dlib's shortcut has no weights: it is averaged where the map is halved, and
    what is smaller is filled up with zeros, in channels and at the right and the bottom."""

    def __init__(self, before: int, width: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.first = nn.Conv2d(before, width, 3, stride=2 if halve else 1, padding=0 if halve else 1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(F.relu(self.first(x)))
        outer = F.avg_pool2d(x, 2) if self.halve else x
        sizes = [max(a, b) for a, b in zip(inner.shape[1:], outer.shape[1:], strict=True)]
        return F.relu(_filled(inner, sizes) + _filled(outer, sizes))


def _filled(x: Tensor, sizes: list[int]) -> Tensor:
    missing = [wanted - found for wanted, found in zip(sizes, x.shape[1:], strict=True)]
    return F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0])) if any(missing) else x


class DlibFaceEncoder(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Aligned face crop → tokens (B, 4, 256), which are the last feature map, and identity (B, 128).

    dlib's rule for two pictures of one person is a distance of identities below .6. `from_dlib` makes the encoder.

    Args:
        dlib_layers: convolutions of the network, which tells its configuration from those of other encoders.
        image_size: px of the ArcFace crop at which the chip has about its own resolution.
    """

    chip_size = CHIP

    @register_to_config
    def __init__(
        self, dlib_layers: int = 29, image_size: int = 168, width: int = WIDTH, embedding_dim: int = EMBEDDING
    ) -> None:
        super().__init__()
        self.grid = GRID
        self.stem = nn.Conv2d(3, 32, 7, stride=2)
        blocks: list[nn.Module] = []
        before = 32
        for stage, (channels, count) in enumerate(_STAGES):
            for number in range(count):
                blocks.append(_Block(before, channels, halve=stage > 0 and number == 0))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, embedding_dim, bias=False)
        self.register_buffer("mean", torch.tensor([122.782, 117.001, 104.298]))
        self.register_buffer("pos_embed", 0.5 * sine_positions(GRID, width)[None])

    @classmethod
    def from_dlib(cls, path: str | Path | None = None) -> "DlibFaceEncoder":
        """Reads the recognizer's file; None is that of the installed package `face_recognition_models`.

        Raises MissingExtraError if the package is not installed, and CheckpointError if the file is missing or another
        than the one published.
        """
        path = installed_file() if path is None else Path(path)
        remedy = "embeddings of another network would not be comparable; install face_recognition_models again"
        network = parse_dlib_network(read_published(path, SHA256, "dlib's published recognizer", remedy))
        encoder = cls()
        with torch.no_grad():
            encoder._copy(network)
        return encoder.eval()

    def _copy(self, network: DlibNetwork) -> None:
        """Takes the mean and the weights over, each convolution with the gains and biases of the layer behind it."""
        self.mean.copy_(torch.from_numpy(network.mean))
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        kernels = [arrays for name, arrays in network.layers if name == "con_4"]
        gains = [arrays for name, arrays in network.layers if name == "affine_"]
        for module, (kernel, bias), (gain, offset) in zip(convolutions, kernels, gains, strict=True):
            module.weight.copy_(torch.from_numpy(kernel * gain[:, None, None, None]))
            module.bias = nn.Parameter(torch.from_numpy(bias * gain + offset))
        _, (head,) = network.layers[-1]
        self.head.weight.copy_(torch.from_numpy(np.ascontiguousarray(head.T)))

    def forward(self, images: Tensor) -> FaceFeatures:
        """Encodes ArcFace crops (B, 3, S, S), RGB in [0, 1], of any size.

        The chip is larger than the crop below the mouth; there the crop's last row is repeated. Chips of the whole
        picture (`warp_to_chips`) show the chin. Raises ValueError for another layout.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected RGB crops (B, 3, H, W) in [0, 1], got shape {tuple(images.shape)}")
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
        return self.encode_chips(warp_to_chips(images, torch.from_numpy(template(size))[None]))

    def encode_chips(self, chips: Tensor) -> FaceFeatures:
        """Encodes chips (B, 3, 150, 150), RGB in [0, 1], as dlib cuts them. Tokens are normalized over their
        channels."""
        if chips.ndim != 4 or tuple(chips.shape[1:]) != (3, CHIP, CHIP):
            raise ValueError(f"expected RGB chips (B, 3, {CHIP}, {CHIP}) in [0, 1], got shape {tuple(chips.shape)}")
        x = (chips * 255 - self.mean[:, None, None]) / 256
        x = self.blocks(F.max_pool2d(F.relu(self.stem(x)), 3, stride=2))
        tokens = F.layer_norm(x.flatten(2).transpose(1, 2), (x.shape[1],))
        return FaceFeatures(tokens=tokens, identity=self.head(x.mean(dim=(2, 3))))


def warp_to_chips(images: Tensor, landmarks: Tensor) -> Tensor:
    """Returns chips (B, 3, 150, 150) of pictures (B, 3, H, W) by their five points (B or 1, 5, 2) px; differentiable in
    both.

    Bilinear, without averaging: a face much larger than the chip is reduced before. Borders are repeated.
    """
    inverse = invert_affine(similarity_between(landmarks.to(images.device).float(), chip_points().to(images.device)))
    axis = torch.arange(CHIP, dtype=torch.float32, device=images.device)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([columns, rows, torch.ones_like(rows)], dim=-1).reshape(1, -1, 3)
    places = (grid @ inverse.transpose(1, 2)).reshape(-1, CHIP, CHIP, 2).expand(len(images), -1, -1, -1)
    extent = places.new_tensor([images.shape[-1], images.shape[-2]])
    chips = F.grid_sample(images.float(), (2 * places + 1) / extent - 1, padding_mode="border", align_corners=False)
    return chips.to(images.dtype)


def installed_file() -> Path:
    """Returns the recognizer's file in the package `face_recognition_models`. Raises MissingExtraError without it."""
    return packaged_file(
        "face_recognition_models",
        "models/dlib_face_recognition_resnet_model_v1.dat",
        "dlib's recognizer is in the package face_recognition_models, which is not installed: "
        "pip install 'faceclip-makeup[photos]', or write dlib:FILE",
    )
