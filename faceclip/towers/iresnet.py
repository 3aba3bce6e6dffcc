"""The residual networks of insightface's arcface_torch (Deng et al. 2019) in the place of `FaceViT`, at every depth.

Parameter names are those of the published `.pth` files (`backbone.pth`, R18 to R200), so that they load without
renaming. Weights trained on MS1MV2, MS1MV3 and Glint360K are for non-commercial research only.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from faceclip.errors import CheckpointError
from faceclip.storage.loading import StrictlyLoaded
from faceclip.towers.face import FaceFeatures, resized_crops, sine_positions

EPS = 1e-5  # of the batch normalizations, as published
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 200: (6, 26, 60, 6)}
WIDTHS = (64, 128, 256, 512)


class _Block(nn.Module):
    """Normalization, convolution, normalization, PReLU, convolution, normalization, beside a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before, eps=EPS)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=EPS)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, eps=EPS)
        self.downsample: nn.Module | None = None
        if stride > 1 or before != width:
            convolution = nn.Conv2d(before, width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(width, eps=EPS))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return inner + (x if self.downsample is None else self.downsample(x))


class FaceResNet(StrictlyLoaded, ModelMixin, ConfigMixin):
    """Aligned face crop → tokens (B, grid², widths[-1]), which are the last feature map, and identity embedding.

    Published sizes: 112 px, so 7 × 7 tokens of 512, and 512-d identities.

    Args:
        layers: blocks of each stage. widths: channels of each stage. image_size: px, a multiple of 16.
    """

    @register_to_config
    def __init__(
        self,
        layers: Sequence[int] = DEPTHS[50],
        widths: Sequence[int] = WIDTHS,
        image_size: int = 112,
        embedding_dim: int = 512,
        width: int = 512,
    ) -> None:
        super().__init__()
        if image_size % 2 ** len(widths):
            raise ValueError(f"image_size must be a multiple of {2 ** len(widths)}, got {image_size}")
        if len(layers) != len(widths) or width != widths[-1]:
            raise ValueError(f"layers {list(layers)} and widths {list(widths)} must be as many, the last of {width}")
        self.grid = image_size // 2 ** len(widths)
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=EPS)
        self.prelu = nn.PReLU(widths[0])
        before = widths[0]
        for number, (count, channels) in enumerate(zip(layers, widths, strict=True), start=1):
            blocks = [_Block(before, channels, 2), *(_Block(channels, channels, 1) for _ in range(count - 1))]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            before = channels
        self.stages = len(widths)
        self.bn2 = nn.BatchNorm2d(before, eps=EPS)
        self.fc = nn.Linear(before * self.grid**2, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim, eps=EPS)
        self.register_buffer("pos_embed", 0.5 * sine_positions(self.grid, width)[None])

    def forward(self, images: Tensor) -> FaceFeatures:
        """Encodes RGB crops (B, 3, H, W) in [0, 1]; any size is resized. Tokens are normalized over their channels.

        Raises ValueError for another number of dimensions or channels.
        """
        images = resized_crops(images, self.config.image_size)
        x = self.prelu(self.bn1(self.conv1(images * 2 - 1)))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        x = self.bn2(x)
        tokens = F.layer_norm(x.flatten(2).transpose(1, 2), (x.shape[1],))
        return FaceFeatures(tokens=tokens, identity=self.features(self.fc(x.flatten(1))))


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """Returns whether a state is that of a residual network of arcface_torch."""
    return "layer1.0.conv1.weight" in state and "fc.weight" in state


def resnet_of(state: Mapping[str, Tensor], where: str) -> FaceResNet:
    """Returns the network whose tensors `state` holds, without its values.

    Raises CheckpointError, which begins with `where`, for sizes that no such network has.
    """
    firsts = [name for name in state if name.startswith("layer") and name.endswith(".conv1.weight")]
    blocks = Counter(name.split(".")[0] for name in firsts)
    stages = [f"layer{number}" for number in range(1, len(blocks) + 1)]
    if sorted(blocks) != stages:
        raise CheckpointError(f"{where}: stages {sorted(blocks)} are no residual network's; needed are {stages}")
    widths = [int(state[f"{stage}.0.conv1.weight"].shape[0]) for stage in stages]
    embedding, inputs = state["fc.weight"].shape
    grid = round((inputs / widths[-1]) ** 0.5)
    if grid**2 * widths[-1] != inputs or grid < 1:
        raise CheckpointError(f"{where}: fc.weight reads {inputs} values, no square map of {widths[-1]} channels")
    return FaceResNet(
        layers=[blocks[stage] for stage in stages],
        widths=widths,
        image_size=int(grid) * 2 ** len(stages),
        embedding_dim=int(embedding),
        width=widths[-1],
    )
