"""Trains the tiny autoencoder, a small `AutoencoderKL`.

python -m train_generator.towers.vae data=DIR [--preset tiny | portraits] [trainer.steps=…]
python -m eval.restoration --vae EXPORT --data DIR    # what restored portraits lose in the eyes of the judges
"""

import copy
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray
from torch import Tensor

from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.storage.hashes import module_hash
from faceclip.storage.loading import load_strictly
from faceclip.storage.shards import ShardedArray
from faceclip.training import MapSource, StepContext, Task
from train_generator.towers.balance import balance_latents
from train_generator.towers.command import TowerConfig, run_tower
from train_generator.towers.crops import cut, draw_corners, mirror_points, put_back
from train_generator.towers.frozen import recognizer_at, start_from
from train_generator.towers.likeness import Likeness
from train_generator.towers.regions import region_weights, weight_table, weighted_mean

PASS_PIXELS = 1 << 20  # pixels that an autoencoder computes at once on an accelerator
PASS_PIXELS_CPU = 1 << 17  # on a CPU, whose caches would not hold more


@dataclass(kw_only=True)
class AutoencoderConfig:
    """Sizes of `AutoencoderKL`: one entry of `widths` per resolution, from the image down to the latents."""

    widths: list[int] = setting(
        factory=lambda: [24, 48, 96], help="channels per resolution, from the image down to the latents"
    )
    layers_per_block: int = setting(1, "residual blocks")
    latent_channels: int = setting(8, "of the latents")
    groups: int = setting(8, "of the group norms")


@dataclass(kw_only=True)
class VaeConfig(TowerConfig):
    """Settings of the command. Weights are relative to the pixel error.

    tokens, identity: weights of the distances between the restored and the true face by the recognizer
    (`train_generator.towers.likeness`). balance: see `train_generator.towers.balance`. decoder_only: keeps the encoder
    of `init` and its latents, so that a base can be trained on these at the same time.

    Raises ConfigError for a window that is larger than the portraits or no multiple of the latents' cell, negative
    weights, a balance that is no share, and decoder_only without init or with a balance.
    """

    out: str = setting("runs/towers/vae", "folder of the run", resume="free", path=True)
    recognizer: str = setting("", "recognizer that compares faces; '': the shipped one", resume="free", path=True)
    init: str = setting("", "export of this command whose weights the training starts from", resume="free", path=True)
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    kl: float = setting(1e-5, "weight of the prior")
    gradient: float = setting(1.0, "weight of the difference of image gradients")
    tokens: float = setting(0.0, "weight of the distance of the face tokens that the recognizer sees", least=0)
    identity: float = setting(0.0, "weight of the distance of the identities that it sees", least=0)
    window: int = setting(0, "px of the random part of each portrait that is trained on; 0: all of it")
    region_weights: dict[str, float] = setting(
        factory=dict, help="weights of pixels that show a region, 1 for those not named"
    )
    balance: float = setting(
        0.0,
        "0 … 1: how far the export's latent channels are brought to one variance; 0: not at all",
        resume="free",
        least=0,
        most=1,
    )
    decoder_only: bool = setting(False, "train the decoder of `init` alone; its latents stay as they are")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.decoder_only and (not self.init or self.balance):
            raise ConfigError("decoder_only: needs init, the export whose latents stay as they are, and no balance")
        cell = 2 ** (len(self.model.widths) - 1)
        if not 0 <= self.window <= self.size or self.window % cell:
            raise ConfigError(
                f"window: must be a multiple of the latents' cell of {cell} px, at most size={self.size}, or 0 for "
                f"whole portraits, got {self.window}"
            )

    @property
    def compares_faces(self) -> bool:
        """Whether the training uses the recognizer."""
        return self.tokens > 0 or self.identity > 0


class WeightedSource(MapSource):
    """Portraits of one split, or random windows of `window` px, with the weights of their pixels.

    Fields: image (3, W, W) uint8 and weights (1, W, W). `faces` adds the whole portrait (3, S, S) uint8, the corner
    (2,), x and y, of the window in it, and landmarks (5, 2) px of the portrait.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        *,
        size: int,
        weights: Mapping[str, float] | None = None,
        window: int = 0,
        faces: bool = False,
    ) -> None:
        self.arrays: FaceArrays = load_arrays(directory, split, size=size)
        self.weights = weight_table(weights or {})
        self.window, self.faces = window, faces

    def __len__(self) -> int:
        return len(self.arrays)

    def get_batch(self, indices: list[int], rngs: list[np.random.Generator]) -> dict[str, Tensor]:
        """Returns a batch, half of it mirrored: the autoencoder need not distinguish left from right."""
        rows = np.asarray(indices)
        flips = np.array([rng.random() < 0.5 for rng in rngs])[:, None, None]
        assert self.arrays.regions is not None  # of renders
        images, regions = self.arrays.images[rows], self.arrays.regions[rows]
        images = whole = np.where(flips[..., None], images[:, :, ::-1], images)
        regions = np.where(flips, regions[:, :, ::-1], regions)
        corners = np.zeros((len(rows), 2), np.int64)
        if self.window:
            corners = draw_corners(rngs, self.arrays.size, self.window)
            images, regions = (cut(pictures, corners, self.window) for pictures in (images, regions))
        batch = {
            "image": _channels_first(images),
            "weights": region_weights(regions, self.weights, side=regions.shape[1]),
        }
        if self.faces:
            points = self.arrays.landmarks_5[rows]
            points = np.where(flips, mirror_points(points, self.arrays.size), points)
            batch |= {"portrait": _channels_first(whole), "corner": torch.from_numpy(corners)}
            batch["landmarks"] = torch.from_numpy(points)
        return batch


def _channels_first(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def make_model(config: AutoencoderConfig, size: int) -> AutoencoderKL:
    """Returns a new autoencoder of these sizes for pictures of `size` px."""
    levels = len(config.widths)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.widths),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.groups,
        sample_size=size,
        # Portraits of 64 px: convolutions see the whole latent, attention would only cost time.
        mid_block_add_attention=False,
        force_upcast=False,
    )


class VaeTask(Task):
    """Minimizes |x − x̂| of pixels and of image gradients, a light Kullback-Leibler prior, and with `likeness` the
    distances that the recognizer sees."""

    def __init__(self, model: AutoencoderKL, config: VaeConfig, likeness: Likeness | None = None) -> None:
        self.modules, self.likeness = model, likeness
        self.config = config
        if config.decoder_only:
            model.encoder.requires_grad_(False)
            model.quant_conv.requires_grad_(False)
        self.validation = load_arrays(config.data, "validation", size=config.size)
        self.training = load_arrays(config.data, "train", size=config.size)

    def facts(self) -> dict[str, str]:
        """Returns the hash of the comparing recognizer; a run resumes only with the same one."""
        return {} if self.likeness is None else {"recognizer": module_hash(self.likeness.recognizer)[:16]}

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = to_model(batch["image"])
        posterior = self.modules.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(
            posterior.mean.shape, generator=context.generator, device=pixels.device
        )
        restored = self.modules.decode(latents).sample.float()
        error, weights = restored - pixels, batch["weights"]
        absolute = weighted_mean(error.abs(), weights)
        gradient = weighted_mean(error.diff(dim=2).abs(), weights[:, :, 1:]) + weighted_mean(
            error.diff(dim=3).abs(), weights[..., 1:]
        )
        prior = posterior.kl().mean() / pixels[0, 0].numel()
        total = absolute + self.config.gradient * gradient + self.config.kl * prior
        squared = error.square().mean() / 4
        parts = {
            "absolute": absolute,
            "gradient": gradient,
            "prior": prior,
            "psnr": -10 * torch.log10(squared),
        }
        if self.likeness is not None:
            true = batch["portrait"].float() / 255
            whole = put_back(true, (restored + 1) / 2, batch["corner"])
            tokens, identity = self.likeness.to(true.device)(whole, true, batch["landmarks"])
            total = total + self.config.tokens * tokens + self.config.identity * identity
            parts |= {"tokens": tokens, "identity": identity}
        return total, {name: part.detach() for name, part in parts.items()}

    def validate(self, step: int) -> dict[str, float]:
        rows = np.linspace(0, len(self.validation) - 1, min(256, len(self.validation))).astype(int)
        return {"psnr": float(psnr(self.modules, self.validation.images[rows]).mean())}

    def export(self, directory: Path) -> None:
        """Saves the weights, and the factor that gives the latents unit variance (as SDXL's `scaling_factor`)."""
        if self.config.decoder_only:  # latents and factor are those of `init`
            self.modules.save_pretrained(directory)
            return
        model = copy.deepcopy(self.modules)
        rows = np.linspace(0, len(self.training) - 1, min(512, len(self.training))).astype(int)
        images = self.training.images[rows]
        if self.config.balance:
            balance_latents(model, encode_mean(model, images), mean_variance(model, images), self.config.balance)
        latents = encode_mean(model, images)
        model.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
        model.save_pretrained(directory)


def to_model(images: Tensor) -> Tensor:
    """Converts uint8 images (B, 3, S, S) to [−1, 1]."""
    return images.float() / 127.5 - 1


def batch_at(size: int, device: torch.device) -> int:
    """Returns how many pictures of `size` px an autoencoder computes at once.

    It is 8 of 128 px on a CPU and 64 on an accelerator, and fewer for larger pictures (the autoencoder of SDXL takes
    about 2.5 GiB for one of 1024 px).
    """
    return max(1, min(64, (PASS_PIXELS_CPU if device.type == "cpu" else PASS_PIXELS) // size**2))


@torch.no_grad()
def encode_mean(model: AutoencoderKL, images: NDArray[np.uint8]) -> Tensor:
    """Returns unscaled posterior means (N, C, h, w) of images (N, H, W, 3), uint8."""
    return torch.cat([posterior.mean.float().cpu() for posterior in _posteriors(model, images)])


@torch.no_grad()
def mean_variance(model: AutoencoderKL, images: NDArray[np.uint8]) -> Tensor:
    """Returns posterior variances (C,), averaged over images (N, S, S, 3) and places."""
    return torch.cat([posterior.var.float().cpu() for posterior in _posteriors(model, images)]).mean(dim=(0, 2, 3))


def _posteriors(model: AutoencoderKL, images: NDArray[np.uint8]) -> Iterator[DiagonalGaussianDistribution]:
    batch = batch_at(math.isqrt(images.shape[1] * images.shape[2]), model.device)
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(np.ascontiguousarray(images[start : start + batch].transpose(0, 3, 1, 2)))
        yield model.encode(to_model(pixels).to(model.device)).latent_dist


@torch.no_grad()
def psnr(model: AutoencoderKL, images: NDArray[np.uint8] | ShardedArray) -> NDArray[np.float64]:
    """Returns the peak signal-to-noise ratio in dB of each restored image (N,), rounded to 8 bits as in a file."""
    values, batch = [], batch_at(images.shape[1], model.device)
    for start in range(0, len(images), batch):
        part = np.ascontiguousarray(images[start : start + batch])
        latents = encode_mean(model, part).to(model.device)
        restored = model.decode(latents).sample.float().clamp(-1, 1).cpu()
        restored = ((restored + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
        squared = np.square(restored - part).mean(axis=(1, 2, 3))
        values.append(10 * np.log10(255**2 / np.maximum(squared, 1e-6)))
    return np.concatenate(values)


def build(config: VaeConfig) -> tuple[VaeTask, WeightedSource]:
    """Returns task and source of a configuration."""
    faces = config.compares_faces
    source = WeightedSource(
        Path(config.data),
        "train",
        size=config.size,
        weights=config.region_weights,
        window=config.window,
        faces=faces,
    )
    likeness = Likeness(recognizer_at(config.recognizer)) if faces else None
    model = make_model(config.model, config.size)
    if config.init:
        model.register_to_config(scaling_factor=start_from(model, Path(config.init)).config.scaling_factor)
    return VaeTask(model, config, likeness), source


def measure(path: Path, config: VaeConfig) -> dict[str, Estimate]:
    """Measures the mean PSNR on the test identities."""
    model = load_strictly(AutoencoderKL.from_pretrained, AutoencoderKL, path).eval()
    test = load_arrays(config.data, "test", size=config.size)
    return {"PSNR (dB)": identity_bootstrap(psnr(model, test.images), np.asarray(test.identity))}


main = partial(
    run_tower,
    VaeConfig,
    name="vae",
    build=build,
    measure=measure,
    title="Tiny autoencoder (AutoencoderKL)",
    summary=(
        "A small autoencoder of SDXL's class, from portraits to latents and back; config.json has its sizes. "
        "Trained on renders of synthetic identities; it is not meant for photos."
    ),
)

if __name__ == "__main__":
    sys.exit(main())
