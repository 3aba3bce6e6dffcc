"""Trains the tiny SDXL base, a small `UNet2DConditionModel` on the latents of synthetic portraits.

python -m train_generator.towers.base data=DIR vae=DIR text_l=DIR text_g=DIR [--preset tiny]
python -m eval.judges.base export=DIR data=DIR    # adds to its card what a judge finds in its pictures
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from faceclip import weights
from faceclip.data.arrays import load_arrays
from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting
from faceclip.statistics import Estimate, identity_bootstrap
from faceclip.storage.folders import MANIFEST
from faceclip.storage.hashes import module_hash
from faceclip.towers.face import FaceViT
from faceclip.towers.text import TextTower
from faceclip.towers.text_pair import TextPair
from faceclip.training import StepContext, Task
from faceclip.training.towers.labels import JUDGED
from makeup_plugin.conditioning import time_ids
from makeup_plugin.diffusion import NoiseSchedule
from makeup_plugin.losses import IGNORED, attribute_loss, feature_distance
from makeup_plugin.saving.shipped import shipped_pipeline
from train_generator.loading import load_frozen
from train_generator.towers.alignment import Alignment, middle_features, portrait_tokens, tokens_in_place
from train_generator.towers.attributes import LatentClassifier, read_estimates
from train_generator.towers.command import TowerConfig, run_tower
from train_generator.towers.frozen import recognizer_at, start_from
from train_generator.towers.latent_source import LatentSource
from train_generator.towers.latents import weights_hash
from train_generator.towers.levels import LevelConfig, draw_timesteps, level_weights
from train_generator.towers.regions import weighted_mean


@dataclass(kw_only=True)
class UNetConfig:
    """Sizes of `UNet2DConditionModel`. As in SDXL, the finest resolution has no attention."""

    widths: list[int] = setting(factory=lambda: [64, 160], help="channels per resolution")
    attention: list[bool] = setting(factory=lambda: [False, True], help="whether a resolution has attention")
    layers_per_block: int = setting(1, "residual blocks")
    transformer_layers: int = setting(1, "per attention block")
    head_dim: int = setting(32, "width of a head")
    groups: int = setting(16, "of the group norms")


@dataclass(kw_only=True)
class BaseConfig(TowerConfig):
    """Settings of the command.

    attribute_weight, feature_weight: weights of the losses by a classifier of noisy latents, on named attributes and on
    its features (`train_generator.towers.attributes`). They rise linearly in `attribute_warmup` steps, in which the
    classifier learns. alignment: weight of the distance between the UNet's middle features and the tokens of
    `recognizer` (`train_generator.towers.alignment`) in the first share `alignment_until` of the steps.

    Raises ConfigError for negative weights, a feature_weight without attribute_weight, and an `alignment_until` that is
    no share.
    """

    out: str = setting("runs/towers/base", "folder of the run", resume="free", path=True)
    vae: str = setting("", "autoencoder; '': the shipped one", resume="free", path=True)
    text_l: str = setting("", "text tower; '': the shipped one", resume="free", path=True)
    text_g: str = setting("", "text tower; '': the shipped one", resume="free", path=True)
    recognizer: str = setting("", "recognizer of the alignment; '': the shipped one", resume="free", path=True)
    init: str = setting("", "export of this command whose weights the training starts from", resume="free", path=True)
    model: UNetConfig = field(default_factory=UNetConfig)
    text_dropout: float = setting(0.1, "share of dropped texts")
    region_weights: dict[str, float] = setting(
        factory=dict, help="weights of the error where a region is seen, 1 for those not named"
    )
    attribute_weight: float = setting(
        0.0, "of the loss by a classifier of noisy latents on named attributes; 0: none of it", least=0
    )
    feature_weight: float = setting(0.0, "of the loss on that classifier's features", least=0)
    attribute_warmup: int = setting(1000, "steps up to both weights, in which the classifier learns")
    levels: LevelConfig = field(default_factory=LevelConfig)
    alignment: float = setting(
        0.0, "weight of the distance of the UNet's middle features to the recognizer's tokens; 0: none", least=0
    )
    alignment_until: float = setting(0.6, "share of the steps with that loss", least=0, most=1)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.feature_weight and not self.attribute_weight:
            raise ConfigError(
                "feature_weight: its features are those of the classifier, which is trained only with "
                "attribute_weight above 0"
            )


def make_scheduler() -> DDIMScheduler:
    """Returns a scheduler for velocity with zero terminal SNR (Lin et al. 2024), so that sampling starts from pure
    noise."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def make_model(config: UNetConfig, *, latents: tuple[int, int], context: int, pooled: int) -> UNet2DConditionModel:
    """Returns a new UNet for latents (channels, side) with SDXL's text_time conditioning.

    context: width of the text tokens. pooled: width of the pooled text, to which six sizes of 32 numbers each are
    added.
    """
    channels, side = latents
    down = tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in config.attention)
    up = tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(config.attention))
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=tuple(config.widths),
        layers_per_block=config.layers_per_block,
        transformer_layers_per_block=config.transformer_layers,
        attention_head_dim=[width // config.head_dim for width in config.widths],
        norm_num_groups=config.groups,
        cross_attention_dim=context,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=pooled + 6 * 32,
    )


class BaseTask(Task):
    """Predicts velocities of latents from text. With a classifier it adds the loss on named attributes, and with a
    recognizer the distance of the middle features to its tokens."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        towers: TextPair,
        config: BaseConfig,
        vae: Path,
        recognizer: FaceViT | None = None,
    ) -> None:
        self.modules = nn.ModuleDict({"unet": unet, "towers": towers})
        self.config, self.vae = config, vae
        self.scheduler, self.frozen = make_scheduler(), {}
        self.schedule = NoiseSchedule.from_scheduler(self.scheduler)
        arrays = load_arrays(config.data, "validation", size=config.size)
        self.validation = LatentSource(arrays, vae, text_dropout=0.0)
        if config.attribute_weight:
            classes = [len(arrays.vocabularies[name]) for name in JUDGED]
            channels, side = self.validation.latents.shape[1:3]
            self.modules["classifier"] = LatentClassifier((channels, side), classes)
        if recognizer is not None:
            self.recognizer = dict(recognizer.config)
            self.frozen = {"recognizer": module_hash(recognizer)[:16]}
            self.modules["alignment"] = Alignment(unet.config.block_out_channels[-1], recognizer.config.width)

    def facts(self) -> dict[str, str]:
        """Returns hashes of the frozen parts; a run resumes only with equal ones."""
        towers = self.modules["towers"]
        texts = {"text_l": module_hash(towers.l)[:16], "text_g": module_hash(towers.g)[:16]}
        return texts | {"vae": weights_hash(self.vae)[:16]} | self.frozen

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        clean = batch["latents"]
        timesteps = draw_timesteps(self.config.levels, len(clean), len(self.schedule), context.generator)
        noise = torch.randn(clean.shape, generator=context.generator, device=clean.device)
        noisy = self.schedule.add_noise(clean, noise, timesteps)
        looks = middle_features if "alignment" in self.modules else nullcontext
        with looks(self.modules["unet"]) as middle:
            prediction = self._predict(noisy, timesteps, batch["tokens"])
        errors = velocity_errors(self.schedule, prediction, clean, noise, timesteps)
        counts = level_weights(self.config.levels, self.schedule, timesteps)
        total = weighted_mean(errors if counts is None else errors * counts, batch["weights"])
        parts = {"noise": total.detach()}
        if "alignment" in self.modules:
            aligned = self._aligned(middle[0], batch)
            until = self.config.alignment_until * context.steps
            total = total + (self.config.alignment if context.step < until else 0.0) * aligned
            parts["aligned"] = aligned.detach()
        if "classifier" in self.modules:
            config = self.config
            read = attribute_loss(self.modules["classifier"](noisy, timesteps).logits, batch["classes"])
            drawn, distance = self.drawn_losses(prediction, noisy, timesteps, batch, context)
            warmth = min(1.0, context.step / max(1, config.attribute_warmup))
            total = total + read + warmth * (config.attribute_weight * drawn + config.feature_weight * distance)
            parts |= {"read": read.detach(), "drawn": drawn.detach(), "features": distance.detach()}
        return total, parts

    def _aligned(self, features: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Returns the distance of the UNet's middle features from the recognizer's tokens at the same places."""
        config = self.recognizer
        targets, seen = tokens_in_place(
            batch["face_tokens"],
            batch["landmarks"],
            portrait=self.config.size,
            cells=features.shape[-1],
            crop=config["image_size"],
            patch=config["patch_size"],
        )
        return self.modules["alignment"](features, targets, seen)

    def drawn_losses(
        self, prediction: Tensor, noisy: Tensor, timesteps: Tensor, batch: dict[str, Tensor], context: StepContext
    ) -> tuple[Tensor, Tensor]:
        """Returns two losses of the estimated clean latents by the classifier: the cross-entropy of the attributes that
        the text names, and the distance of its features from those of the true latents under the same noise."""
        found, true = read_estimates(
            self.modules["classifier"],
            self.schedule,
            prediction,
            noisy,
            batch["latents"],
            timesteps,
            context.generator,
        )
        classes = batch["classes"].masked_fill(~batch["named"], IGNORED)
        return attribute_loss(found.logits, classes), feature_distance(found.features, true.features)

    def _predict(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        return predict(self.modules["unet"], self.modules["towers"], noisy, timesteps, tokens, self.config.size)

    def validate(self, step: int) -> dict[str, float]:
        """Returns the loss on validation portraits, with fixed captions, noise and timesteps."""
        parts = fixed_errors(self.modules["unet"], self.modules["towers"], self.validation, self.config.size)
        return {"validation_noise": float(np.mean([float(part.mean()) for part in parts]))}

    def export(self, directory: Path) -> None:
        """Saves the folders `unet`, `scheduler` and `vae` of an SDXL pipeline, which stage 2 takes as `base=`."""
        self.modules["unet"].save_pretrained(directory / "unet")
        self.scheduler.save_pretrained(directory / "scheduler")
        shutil.copytree(self.vae, directory / "vae", ignore=shutil.ignore_patterns(MANIFEST))


def predict(
    unet: UNet2DConditionModel, towers: TextPair, noisy: Tensor, timesteps: Tensor, tokens: Tensor, size: int
) -> Tensor:
    """Predicts the velocity (B, C, s, s) of noisy latents of portraits of `size` px, given tokens (B, 77)."""
    text = towers(tokens)
    added = {"text_embeds": text.pooled, "time_ids": time_ids(size, size, len(noisy), device=noisy.device)}
    return unet(noisy, timesteps, encoder_hidden_states=text.tokens, added_cond_kwargs=added).sample


def velocity_errors(
    schedule: NoiseSchedule, prediction: Tensor, clean: Tensor, noise: Tensor, timesteps: Tensor
) -> Tensor:
    """Returns the squared errors (B, C, s, s) of a predicted velocity."""
    return (prediction.float() - schedule.target(clean, noise, timesteps)).square()


@torch.no_grad()
def fixed_errors(
    unet: UNet2DConditionModel, towers: TextPair, source: LatentSource, size: int, *, count: int = 512
) -> Iterator[Tensor]:
    """Yields squared errors (B, C, s, s) of the first `count` portraits, with fixed captions, noise and timesteps."""
    schedule, device = NoiseSchedule.from_scheduler(make_scheduler()), unet.device
    count = min(count, len(source))
    generator = torch.Generator().manual_seed(0)
    for start in range(0, count, 64):
        rows = list(range(start, min(start + 64, count)))
        batch = source.get_batch(rows, [np.random.default_rng(row) for row in rows])
        timesteps = torch.linspace(0, len(schedule) - 1, len(rows)).long()
        noise = torch.randn(batch["latents"].shape, generator=generator)
        given = (batch["latents"], noise, timesteps, batch["tokens"])
        clean, added, when, tokens = (value.to(device) for value in given)
        prediction = predict(unet, towers, schedule.add_noise(clean, added, when), when, tokens, size)
        yield velocity_errors(schedule, prediction, clean, added, when)


def parts_of(config: BaseConfig) -> tuple[Path, TextPair]:
    """Returns the frozen autoencoder's folder and the text towers."""
    vae = Path(config.vae) if config.vae else shipped_pipeline("tiny") / "vae"
    text_l = Path(config.text_l) if config.text_l else weights.path("tiny/text_tower_l")
    text_g = Path(config.text_g) if config.text_g else weights.path("tiny/text_tower_g")
    remedy = "train it by `python -m train_encoder.towers.clip`"
    towers = [load_frozen(TextTower, path, name, remedy) for name, path in (("text_l", text_l), ("text_g", text_g))]
    return vae, TextPair(*towers)


def build(config: BaseConfig) -> tuple[BaseTask, LatentSource]:
    """Returns task and source of a configuration."""
    vae, towers = parts_of(config)
    arrays = load_arrays(config.data, "train", size=config.size)
    recognizer = recognizer_at(config.recognizer) if config.alignment else None
    source = LatentSource(
        arrays,
        vae,
        text_dropout=config.text_dropout,
        weights=config.region_weights,
        face_tokens=None if recognizer is None else portrait_tokens(arrays, recognizer, "train"),
    )
    channels, side = source.latents.shape[1:3]
    unet = make_model(
        config.model,
        latents=(channels, side),
        context=towers.l.config.width + towers.g.config.width,
        pooled=towers.g.config.width,
    )
    if config.init:
        start_from(unet, Path(config.init) / "unet")
    return BaseTask(unet, towers, config, vae, recognizer), source


def measure(path: Path, config: BaseConfig) -> dict[str, Estimate]:
    """Measures the squared error of the velocity on the test portraits, at fixed noise.

    `python -m eval.judges.base` measures the pictures.
    """
    vae, towers = parts_of(config)
    unet = load_frozen(UNet2DConditionModel, path / "unet", "base", "give an export of this command")
    source = LatentSource(load_arrays(config.data, "test", size=config.size), vae, text_dropout=0.0)
    errors = fixed_errors(unet, towers, source, config.size, count=len(source))
    values = torch.cat([part.mean(dim=(1, 2, 3)).cpu() for part in errors]).numpy()
    return {"velocity error": identity_bootstrap(values, np.asarray(source.arrays.identity))}


main = partial(
    run_tower,
    BaseConfig,
    name="base",
    build=build,
    measure=measure,
    parts=("unet",),
    title="Tiny SDXL base (UNet2DConditionModel)",
    summary=(
        "A small text-to-image model of SDXL's class on the tiny autoencoder's latents, with both text towers "
        "and text_time conditioning. Trained on renders of synthetic identities; it draws nothing else."
    ),
)

if __name__ == "__main__":
    sys.exit(main())
