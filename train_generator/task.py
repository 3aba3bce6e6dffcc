"""The objective of stage 2: noise prediction, attention on what the words describe, and identity of the face."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from faceclip.storage.hashes import bytes_hash, frozen_hash, module_hash, settings_text
from faceclip.towers.face import FaceFeatures
from faceclip.training import StepContext, Task
from faceclip.training.collectives import is_main_process
from faceclip.training.optimization import decay_groups
from faceclip.training.sampler import fetch
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.attention import layers_at
from makeup_plugin.conditioning import Conditions, build_conditions
from makeup_plugin.diffusion import NoiseSchedule
from makeup_plugin.marking.provenance import save_image, sheet_record
from makeup_plugin.shading import rows_with_map
from train_generator.checkpointing import checkpoint_gradients
from train_generator.config import GeneratorConfig, LossConfig
from train_generator.precision import autocast_for
from train_generator.reference_features import ReferenceFeatures
from train_generator.sample_grid import draw_columns, draw_pictures, grid_picture
from train_generator.samples import GenerationSource
from train_generator.terms.alignment import aligned_phrases, predict_aligned
from train_generator.terms.denoising import denoising_loss
from train_generator.terms.identity import LatentFaces, OtherPeople, facial_perceptual_loss
from train_generator.terms.prior import prior_loss
from train_generator.terms.sample import Sample, join
from train_generator.terms.sampled_identity import finished_identity_distance, sampled_identity_loss, sampler_stops
from train_generator.validation_pictures import picture_figures, picture_names


class GeneratorTask(Task):
    """Stage 2 as a task of the shared trainer.

    pipeline: already has the adapter. training: the split whose faces are the negatives of `loss.identity_contrast`.
    """

    def __init__(
        self,
        pipeline: FaceMakeUpPipeline,
        config: GeneratorConfig,
        validation: ReferenceFeatures,
        training: ReferenceFeatures | None = None,
    ) -> None:
        self.pipeline, self.config, self.validation = pipeline, config, validation
        parts = {
            name: getattr(pipeline, name)
            for name in ("unet", "identity_channel", "shading_channel", "joint_encoder", "vae")
        }
        others = other_people(training, config.loss) if training is not None else None
        parts["others"] = others
        self.modules = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})
        if config.gradient_checkpointing:
            for part in (pipeline.unet, pipeline.shading_channel, pipeline.vae):
                if part is not None:
                    checkpoint_gradients(part)
        # If the whole UNet is trained, only this hash identifies the base.
        self.base_hash = (module_hash if config.adapter.unet == "full" else frozen_hash)(pipeline.unet)
        self.schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
        self.faces = LatentFaces(vae=pipeline.vae, recognizer=pipeline.joint_encoder.face_encoder, others=others)
        self.stops = sampler_stops(pipeline.scheduler, config.loss) if config.loss.sampled_identity else []
        # Whether each step does the same work on every rank, for any samples: `train_generator.terms.rows`.
        self.same_work = False
        self.layers = layers_at(pipeline.unet, config.loss.alignment_factor) if config.loss.alignment else []
        self.validation_source = GenerationSource(
            validation, config.dropout, same_picture=float(config.same_picture == 1)
        )

    def facts(self) -> dict[str, str]:
        """Returns hashes of the stage-1 export and the base, with which alone a run may resume."""
        pipeline = self.pipeline
        parts = {
            "encoder": module_hash(pipeline.joint_encoder) + module_hash(pipeline.image_encoder),
            "base": self.base_hash + module_hash(pipeline.vae) + settings_text(pipeline.scheduler.config),
        }
        return {name: bytes_hash(part.encode())[:16] for name, part in parts.items()}

    def parameter_groups(self) -> list[dict[str, Any]] | None:
        """Returns groups in which a wholly trained UNet has `adapter.unet_rate` times the learning rate of the
        channels."""
        config = self.config
        if config.adapter.unet == "lora" or config.adapter.unet_rate == 1:
            return None
        named = [(name, value) for name, value in self.modules.named_parameters() if value.requires_grad]
        unet = decay_groups(((n, p) for n, p in named if n.startswith("unet.")), config.trainer.weight_decay)
        rest = decay_groups(((n, p) for n, p in named if not n.startswith("unet.")), config.trainer.weight_decay)
        rate = config.trainer.learning_rate * config.adapter.unet_rate
        return [group | {"lr": rate} for group in unet] + rest

    @torch.no_grad()
    def conditions(self, batch: dict[str, Tensor]) -> Conditions:
        """Builds the conditions of a batch from cached features; dropped conditions take the form that the pipeline
        uses."""
        pipeline = self.pipeline
        height, width = batch["shading"].shape[-2:]
        features = FaceFeatures(tokens=batch["face_tokens"], identity=batch["face_identity"])
        joint = pipeline.joint_encoder.encode(batch["tokens"], face_features=features, has_face=batch["keep_face"])
        inputs: dict[str, Any] = {}
        if pipeline.identity_channel is not None:
            inputs |= {"identity": batch["face_identity"].float(), "image_tokens": batch["image_tokens"]}
            inputs["has_identity"] = batch["keep_identity"]
        if pipeline.shading_channel is not None:
            inputs |= {"shading": batch["shading"].float() / 255, "has_shading": batch["keep_shading"]}
        built = build_conditions(joint, height=height, width=width, **inputs)
        return replace(built, time_ids=batch["time_ids"]).to(dtype=torch.float32)

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        clean, generator = batch["latents"], context.generator
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        if share := self.config.loss.offset_noise:
            noise = noise + share * torch.randn((*clean.shape[:2], 1, 1), generator=generator, device=clean.device)
        timesteps = torch.randint(len(self.schedule), (len(clean),), generator=generator, device=clean.device)
        sample = self.sample(batch, noise, timesteps)
        total, parts = self.terms(sample, fixed=self.same_work)
        config = self.config.loss
        if config.sampled_identity:
            drawn = None
            if self.same_work:
                seeds = [self.config.trainer.seed, context.step, context.micro_step]
                drawn = int(np.random.default_rng(seeds).integers(len(self.stops)))
            sampled = sampled_identity_loss(
                sample,
                self.pipeline,
                self.faces,
                generator,
                steps=config.sampled_steps,
                stops=self.stops,
                limit=config.sampled_rows,
                drawn=drawn,
            )
            total = total + config.sampled_identity * sampled
            parts["loss_sampled_identity"] = sampled.detach()
        return total, parts

    def sample(self, batch: dict[str, Tensor], noise: Tensor, timesteps: Tensor) -> Sample:
        """Adds noise (B, C, h, w) of timesteps (B,) to a batch, and returns it with the model's prediction."""
        if self.schedule.alphas_cumprod.device != noise.device:
            self.schedule = self.schedule.to(noise.device)
        conditions, schedule = self.conditions(batch), self.schedule
        noisy = schedule.add_noise(batch["latents"], noise, timesteps)
        with_map = None if self.same_work else rows_with_map(conditions.shading_keep)
        if with_map is not None and not len(with_map):
            with_map = None  # each step has gradients for the channel, though they be zero
        prediction, alignment = predict_aligned(
            self.pipeline, batch, noisy, timesteps, conditions, layers=self.layers, with_map=with_map
        )
        knows_person = batch["keep_face"]
        if self.pipeline.identity_channel is not None:
            knows_person = knows_person | batch["keep_identity"]
        return Sample(
            batch=batch,
            conditions=conditions,
            knows_person=knows_person,
            schedule=schedule,
            noise=noise,
            noisy=noisy,
            timesteps=timesteps,
            prediction=prediction,
            alignment=alignment,
        )

    def terms(self, sample: Sample, *, fixed: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum of all terms on noised pictures, and each term by its name in the log.

        fixed: whether every term computes the largest possible number of samples (`train_generator.terms.rows`).
        """
        config = self.config.loss
        denoising = denoising_loss(sample, min_snr_gamma=config.min_snr_gamma)
        face = denoising.new_zeros(())
        if config.identity:
            face = facial_perceptual_loss(
                sample,
                self.faces,
                below=config.identity_below,
                limit=config.identity_rows,
                at_once=self.config.trainer.batch_size,
                fixed=fixed,
            )
        total = denoising + config.alignment * sample.alignment + config.identity * face
        parts = {"noise": denoising, "alignment": sample.alignment, "identity": face}
        if config.prior:
            parts["prior"] = prior_loss(sample, self.pipeline.unet, fixed=fixed)
            total = total + config.prior * parts["prior"]
        return total, {f"loss_{name}": value.detach() for name, value in parts.items()}

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Returns losses on fixed validation samples at fixed noise, and saves a grid of samples in `out/samples`.

        The UNet computes as many samples at once as in training, but the figures are those of one batch of all samples.
        They are computed in float32, or under bf16 autocast if frozen weights have 16 bits.
        """
        with autocast_for(self.config.frozen, next(self.modules["unet"].parameters()).device):
            return self._validate(step)

    def _validate(self, step: int) -> dict[str, float]:
        config, at_once = self.config.loss, self.config.trainer.batch_size
        rows = np.random.default_rng(5).permutation(len(self.validation_source))
        if (groups := self.validation_source.groups) is not None:  # one batch is of one shape: the most frequent
            rows = rows[groups[rows] == np.bincount(groups).argmax()]
        rows = rows[: self.config.validation_rows]
        batch = fetch(self.validation_source, [(int(row), 0) for row in rows], 5)
        device = next(self.modules["unet"].parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        generator = torch.Generator(device).manual_seed(5)
        noise = torch.randn(batch["latents"].shape, generator=generator, device=device)
        timesteps = torch.linspace(20, len(self.schedule) - 20, len(rows), device=device).long()
        samples: list[Sample] = []
        aligned, phrases = noise.new_zeros(()), 0
        for part in _parts(batch, at_once):
            place = slice(len(samples) * at_once, (len(samples) + 1) * at_once)
            samples.append(self.sample(part, noise[place], timesteps[place]))
            count = int(aligned_phrases(part, config.alignment_factor))
            aligned, phrases = aligned + samples[-1].alignment * count, phrases + count
        sample = join(samples, batch=batch, alignment=aligned / max(phrases, 1))
        total, parts = self.terms(sample)
        figures = {"loss": float(total)} | {name: float(value) for name, value in parts.items()}
        if config.sampled_identity:
            figures["loss_sampled_identity"] = finished_identity_distance(
                sample,
                self.pipeline,
                self.faces,
                generator,
                steps=config.sampled_steps,
                stop=self.stops[-1],
                at_once=at_once,
            )
            figures["loss"] += config.sampled_identity * figures["loss_sampled_identity"]
        if self.config.validation_pictures:
            figures |= self._picture_figures(batch, self.config.validation_pictures)
        self._save_grid(batch, Path(self.config.out) / "samples" / f"{step:06d}.png")
        return figures

    def figures(self) -> tuple[str, ...]:
        """Returns the names of `validate`'s figures."""
        config, names = self.config.loss, ["loss", "loss_noise", "loss_alignment", "loss_identity"]
        names += ["loss_prior"] if config.prior else []
        names += ["loss_sampled_identity"] if config.sampled_identity else []
        return (*names, *(picture_names(self.pipeline) if self.config.validation_pictures else ()))

    def _picture_figures(self, batch: dict[str, Tensor], count: int) -> dict[str, float]:
        """Returns figures of pictures of the first `count` samples under all conditions, drawn from fixed noise."""
        config, shown = self.config, _with_everything(batch, count)
        noise = torch.randn(shown["latents"].shape, generator=torch.Generator().manual_seed(4))
        parts = zip(_parts(shown, config.trainer.batch_size), noise.split(config.trainer.batch_size), strict=True)
        pictures = [
            draw_pictures(self.pipeline, part, self.conditions(part), start, steps=config.sample_steps)
            for part, start in parts
        ]
        return picture_figures(self.pipeline, shown, torch.cat(pictures))

    def _save_grid(self, batch: dict[str, Tensor], path: Path, count: int = 8) -> None:
        """Saves pictures of the first `count` samples under all conditions."""
        count = min(count, len(batch["latents"]))
        noise = torch.randn((count, *batch["latents"].shape[1:]), generator=torch.Generator().manual_seed(3))
        shown = _with_everything(batch, count)
        at_once, columns = self.config.trainer.batch_size, []
        for part, start in zip(_parts(shown, at_once), noise.split(at_once), strict=True):
            columns.append(
                draw_columns(self.pipeline, part, self.conditions(part), start, steps=self.config.sample_steps)
            )
        if is_main_process():  # under ZeRO-3 all of them draw, since each holds a part of the weights
            save_image(grid_picture(columns), path, sheet_record(model=self.config.base))

    def export(self, directory: Path) -> None:
        """Saves the whole pipeline for `FaceMakeUpPipeline.from_pretrained`."""
        self.pipeline.save_pretrained(directory, licence=self.config.licence)


def other_people(features: ReferenceFeatures, config: LossConfig) -> OtherPeople | None:
    """Returns at most `identity_negatives` faces, spread over a split; None without `loss.identity_contrast`."""
    if not config.identity_contrast:
        return None
    count = len(features.identity)
    rows = np.unique(np.linspace(0, count - 1, min(count, config.identity_negatives)).astype(int))
    identity = np.stack([features.identity[int(row)] for row in rows])
    return OtherPeople(
        torch.from_numpy(identity),
        torch.from_numpy(np.asarray(features.arrays.identity)[rows]),
        weight=config.identity_contrast,
        temperature=config.identity_temperature,
    )


def _with_everything(batch: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Returns the first `count` samples of a batch with all conditions kept."""
    shown = {name: value[:count] for name, value in batch.items()}
    return shown | {name: torch.ones_like(value) for name, value in shown.items() if name.startswith("keep_")}


def _parts(batch: dict[str, Tensor], at_once: int) -> Iterator[dict[str, Tensor]]:
    """Yields a batch in parts of `at_once` rows."""
    for start in range(0, len(batch["latents"]), at_once):
        yield {name: value[start : start + at_once] for name, value in batch.items()}
