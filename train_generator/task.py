"""The objective of stage 2: noise prediction, attention on what the words describe, and whose face it is."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from faceclip.storage.hashes import bytes_hash, frozen_hash, module_hash, settings_text
from faceclip.towers.face import FaceFeatures
from faceclip.training import StepContext, Task
from faceclip.training.sampler import fetch
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.attention import AttentionCapture, layers_at
from makeup_plugin.conditioning import Conditions, build_conditions, concatenate, predict, unconditional_half
from makeup_plugin.diffusion import NoiseSchedule
from makeup_plugin.latent_recognizer import LatentRecognizer, read_estimates
from makeup_plugin.losses import (
    IGNORED,
    attribute_loss,
    decode_latents,
    feature_distance,
    identity_loss,
    low_noise,
    noise_prediction_loss,
    semantic_alignment_loss,
)
from makeup_plugin.marking.provenance import save_image, sheet_record
from makeup_plugin.sampling import denoise, make_timesteps
from train_generator.checkpointing import checkpoint_gradients
from train_generator.config import GeneratorConfig
from train_generator.features import ReferenceFeatures
from train_generator.sampled import sampled_estimate, sampler_stops
from train_generator.samples import GenerationSource

GRID_GUIDANCE = 3.0  # of the sample grids


class GeneratorTask(Task):
    """Stage 2 as a task of the shared trainer; `pipeline` already carries the adapter. `latent_recognizer`: frozen,
    for the losses `loss.latent_…`."""

    def __init__(
        self,
        pipeline: FaceMakeUpPipeline,
        config: GeneratorConfig,
        validation: ReferenceFeatures,
        latent_recognizer: LatentRecognizer | None = None,
    ) -> None:
        self.pipeline, self.config, self.validation = pipeline, config, validation
        parts = {
            name: getattr(pipeline, name)
            for name in ("unet", "identity_channel", "shading_channel", "joint_encoder", "vae")
        }
        parts["latent_recognizer"] = latent_recognizer
        self.modules = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})
        if config.gradient_checkpointing:
            for part in (pipeline.unet, pipeline.shading_channel):
                if part is not None:
                    checkpoint_gradients(part)
        pipeline.joint_encoder.freeze_towers()
        self.schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
        self.stops = sampler_stops(pipeline.scheduler, config.loss) if config.loss.sampled_identity else []
        self.layers = layers_at(pipeline.unet, config.loss.alignment_factor) if config.loss.alignment else []
        self.attributes: tuple[str, ...] = ()
        if latent_recognizer is not None and config.loss.latent_attributes:
            self.attributes = tuple(latent_recognizer.attributes)
        self.validation_source = GenerationSource(
            validation, config.dropout, same_picture=float(config.same_picture == 1), attributes=self.attributes
        )

    def facts(self) -> dict[str, str]:
        """Hashes of the stage-1 export, the base and the latent recognizer: what is trained on them is worth nothing
        on others."""
        pipeline = self.pipeline
        parts = {
            "encoder": module_hash(pipeline.joint_encoder) + module_hash(pipeline.image_encoder),
            "base": frozen_hash(pipeline.unet) + module_hash(pipeline.vae) + settings_text(pipeline.scheduler.config),
        }
        if "latent_recognizer" in self.modules:
            parts["latent_recognizer"] = module_hash(self.modules["latent_recognizer"])
        return {name: bytes_hash(part.encode())[:16] for name, part in parts.items()}

    @torch.no_grad()
    def conditions(self, batch: dict[str, Tensor]) -> Conditions:
        """Conditions of a batch from cached features; what is dropped takes the form that the pipeline gives it."""
        pipeline, size = self.pipeline, self.config.size
        features = FaceFeatures(tokens=batch["face_tokens"], identity=batch["face_identity"])
        joint = pipeline.joint_encoder.encode(batch["tokens"], face_features=features, has_face=batch["keep_face"])
        inputs: dict[str, Tensor] = {}
        if pipeline.identity_channel is not None:
            inputs |= {"identity": batch["face_identity"].float(), "image_tokens": batch["image_tokens"]}
            inputs["has_identity"] = batch["keep_identity"]
        if pipeline.shading_channel is not None:
            inputs |= {"shading": batch["shading"].float() / 255, "has_shading": batch["keep_shading"]}
        return build_conditions(joint, height=size, width=size, **inputs).to(dtype=torch.float32)

    def loss(self, batch: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        clean = batch["latents"]
        noise = torch.randn(clean.shape, generator=context.generator, device=clean.device)
        steps = torch.randint(len(self.schedule), (len(clean),), generator=context.generator, device=clean.device)
        conditions = self.conditions(batch)
        total, parts = self._loss(batch, conditions, noise, steps, context.generator)
        if not self.config.loss.sampled_identity:
            return total, parts
        sampled = self._sampled_loss(batch, conditions, context.generator)
        return total + self.config.loss.sampled_identity * sampled, parts | {"loss_sampled_identity": sampled.detach()}

    def _loss(
        self, batch: dict[str, Tensor], conditions: Conditions, noise: Tensor, steps: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        noisy = self.schedule.add_noise(batch["latents"], noise, steps)
        prediction, alignment = self._predict(batch, conditions, noisy, steps)
        return self._total(batch, prediction, alignment, noise, noisy, steps, generator)

    def _predict(
        self, batch: dict[str, Tensor], conditions: Conditions, noisy: Tensor, steps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The UNet's prediction, and the alignment loss of its attention."""
        pipeline = self.pipeline
        channels = {"identity_channel": pipeline.identity_channel, "shading_channel": pipeline.shading_channel}
        if not self.layers:
            return predict(pipeline.unet, noisy, steps, conditions, **channels), noisy.new_zeros(())
        with AttentionCapture(pipeline.unet, self.layers) as capture:
            prediction = predict(pipeline.unet, noisy, steps, conditions, **channels)
            alignment = semantic_alignment_loss(
                capture.maps.values(), batch["phrase_masks"].float(), batch["phrase_tokens"], batch["keep_text"]
            )
        return prediction, alignment

    def _total(
        self,
        batch: dict[str, Tensor],
        prediction: Tensor,
        alignment: Tensor,
        noise: Tensor,
        noisy: Tensor,
        steps: Tensor,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """All terms, of a whole batch and what was predicted for it."""
        config, schedule = self.config.loss, self.schedule.to(noisy.device)
        target = schedule.target(batch["latents"], noise, steps)
        weights = None
        if config.min_snr_gamma:
            weights = schedule.min_snr_weights(steps, config.min_snr_gamma)
        denoising = noise_prediction_loss(prediction, target, weights)
        face = denoising.new_zeros(())
        if config.identity:
            face = self._identity_loss(batch, prediction, noisy, steps, schedule)
        total = denoising + config.alignment * alignment + config.identity * face
        parts = {"noise": denoising, "alignment": alignment, "identity": face}
        if "latent_recognizer" in self.modules:
            seen = self._latent_losses(batch, prediction, noisy, steps, schedule, generator)
            total = total + sum(getattr(config, name) * value for name, value in seen.items())
            parts |= seen
        return total, {f"loss_{name}": value.detach() for name, value in parts.items()}

    def _knows_person(self, batch: dict[str, Tensor]) -> Tensor:
        """(B,) bool: samples whose person the joint encoder or the identity channel is told."""
        if self.pipeline.identity_channel is None:
            return batch["keep_face"]
        return batch["keep_face"] | batch["keep_identity"]

    def _identity_loss(
        self, batch: dict[str, Tensor], prediction: Tensor, noisy: Tensor, steps: Tensor, schedule: NoiseSchedule
    ) -> Tensor:
        """1 − cosine to the person in the estimated picture, on samples that know the person; of those below
        `identity_below` the noisiest: in the others the noisy picture itself shows who it is."""
        config = self.config.loss
        keep = low_noise(steps, config.identity_below) & self._knows_person(batch)
        rows = steps.masked_fill(~keep, -1).argsort(descending=True)[: config.identity_rows]
        rows = rows[keep[rows]]
        if len(rows) == 0:
            return prediction.sum() * 0.0
        total = prediction.new_zeros(())
        for part in rows.split(self.config.trainer.batch_size):
            clean = schedule.clean(prediction[part].float(), noisy[part], steps[part])
            total = total + self._face_distance(clean, batch, part) * (len(part) / len(rows))
        return total

    def _face_distance(self, latents: Tensor, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
        """1 − cosine between the person of some rows of the batch and the face in their latents, which is cut where
        the target has it."""
        recognizer = self.pipeline.joint_encoder.face_encoder
        return identity_loss(
            decode_latents(self.pipeline.vae, latents),
            batch["landmarks"][rows],
            batch["target_identity"][rows],
            lambda crops: recognizer(crops).identity,
            torch.ones(len(rows), dtype=torch.bool),
            crop_size=recognizer.config.image_size,
        )

    def _sampled_loss(self, batch: dict[str, Tensor], conditions: Conditions, generator: torch.Generator) -> Tensor:
        """1 − cosine to the person in pictures that the model makes itself, on samples that know person and pose."""
        count, device = self.config.loss.sampled_rows, batch["latents"].device
        noise = torch.randn((count, *batch["latents"].shape[1:]), generator=generator, device=device)
        draw = int(torch.randint(len(self.stops), (1,), generator=generator, device=device))
        rows = self._knows_person_and_pose(batch)[:count]
        if len(rows) == 0:
            return batch["latents"].sum() * 0.0
        return self._sampled_distance(batch, conditions.take(rows), rows, noise[: len(rows)], self.stops[draw])

    def _sampled_distance(
        self, batch: dict[str, Tensor], conditions: Conditions, rows: Tensor, noise: Tensor, stop: int
    ) -> Tensor:
        steps = self.config.loss.sampled_steps
        estimate = sampled_estimate(self.pipeline, conditions, noise, steps=steps, stop=stop)
        return self._face_distance(estimate, batch, rows)

    def _knows_person_and_pose(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["keep_shading"] & self._knows_person(batch)).nonzero().flatten()

    def _sampled_validation(
        self, batch: dict[str, Tensor], conditions: Conditions, generator: torch.Generator
    ) -> float:
        """`_sampled_loss` of finished pictures, on all samples that count, by parts as large as a batch."""
        latents = batch["latents"]
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        told, total = self._knows_person_and_pose(batch), 0.0
        for rows in told.split(self.config.trainer.batch_size):
            distance = self._sampled_distance(batch, conditions.take(rows), rows, noise[rows], self.stops[-1])
            total += float(distance) * len(rows) / len(told)
        return total

    def _latent_losses(
        self,
        batch: dict[str, Tensor],
        prediction: Tensor,
        noisy: Tensor,
        steps: Tensor,
        schedule: NoiseSchedule,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """What the latent recognizer says of the estimated latents: 1 − cosine to the person, on samples that know the
        person; how badly it finds what the text names; and how far its features are from those of the true latents
        under the same noise."""
        seen, true = read_estimates(
            self.modules["latent_recognizer"],
            schedule,
            prediction,
            noisy,
            batch["latents"],
            steps,
            generator,
        )
        keep = self._knows_person(batch)
        distance = 1 - F.cosine_similarity(seen.identity, batch["target_identity"].float(), dim=-1)
        losses = {
            "latent_identity": (distance * keep).sum() / keep.sum().clamp(min=1),
            "latent_features": feature_distance(seen.features, true.features),
        }
        if self.config.loss.latent_attributes:
            classes = batch["classes"].masked_fill(~batch["named"], IGNORED)
            losses["latent_attributes"] = attribute_loss(list(seen.attributes.values()), classes)
        return losses

    @torch.no_grad()
    def validate(self, step: int) -> dict[str, float]:
        """Losses on fixed validation samples at fixed noise, and a grid of samples below `out/samples`.

        The UNet sees as many samples at once as in training; the figures are those of one batch of all.
        """
        rows = np.random.default_rng(5).permutation(len(self.validation_source))[: self.config.validation_rows]
        batch = fetch(self.validation_source, [(int(row), 0) for row in rows], 5)
        device = next(self.modules["unet"].parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        generator = torch.Generator(device).manual_seed(5)
        noise = torch.randn(batch["latents"].shape, generator=generator, device=device)
        steps = torch.linspace(20, len(self.schedule) - 20, len(rows), device=device).long()
        noisy = self.schedule.add_noise(batch["latents"], noise, steps)
        given, found, aligned, phrases = [], [], 0.0, 0
        for rows in torch.arange(len(steps), device=device).split(self.config.trainer.batch_size):
            part = {name: value[rows] for name, value in batch.items()}
            given.append(self.conditions(part))
            prediction, alignment = self._predict(part, given[-1], noisy[rows], steps[rows])
            count = int(self._aligned_phrases(part))
            found.append(prediction)
            aligned, phrases = aligned + alignment * count, phrases + count
        alignment = aligned / max(phrases, 1)
        total, parts = self._total(batch, torch.cat(found), alignment, noise, noisy, steps, generator)
        figures = {"loss": float(total)} | {name: float(value) for name, value in parts.items()}
        if self.config.loss.sampled_identity:
            figures["loss_sampled_identity"] = self._sampled_validation(batch, concatenate(given), generator)
            figures["loss"] += self.config.loss.sampled_identity * figures["loss_sampled_identity"]
        self._sample_grid(batch, Path(self.config.out) / "samples" / f"{step:06d}.png")
        return figures

    def _aligned_phrases(self, batch: dict[str, Tensor]) -> Tensor:
        """How many phrases the alignment loss of a batch is the mean of: those with words, whose region is seen on the
        grid of the attention."""
        side = -(-batch["latents"].shape[-1] // self.config.loss.alignment_factor)
        seen = F.adaptive_avg_pool2d(batch["phrase_masks"].float(), side).amax(dim=(2, 3)) >= 0.5
        return (seen & batch["phrase_tokens"].any(dim=-1) & batch["keep_text"][:, None]).sum()

    def _sample_grid(self, batch: dict[str, Tensor], path: Path, count: int = 8) -> None:
        """Top row targets, middle row shading maps, bottom row samples under all conditions."""
        count = min(count, len(batch["latents"]))
        noise = torch.randn((count, *batch["latents"].shape[1:]), generator=torch.Generator().manual_seed(3))
        columns = []
        for rows in torch.arange(count).split(self.config.trainer.batch_size):
            part = {name: value[rows.to(value.device)] for name, value in batch.items()}
            columns.append(self._sample_columns(part, noise[rows]))
        grid = torch.cat(columns, dim=2)
        pixels = (grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        save_image(Image.fromarray(pixels), path, sheet_record(model=self.config.base))

    def _sample_columns(self, batch: dict[str, Tensor], noise: Tensor) -> Tensor:
        """Columns (3, 3 S, B S) of the grid, in [0, 1]."""
        pipeline = self.pipeline
        for name in ("keep_text", "keep_face", "keep_identity", "keep_shading"):
            batch[name] = torch.ones_like(batch[name])
        given = self.conditions(batch)
        size = self.config.size
        without = unconditional_half(pipeline.joint_encoder, [""], given, height=size, width=size, keep_shading=True)
        noise = noise.to(given.tokens.device)
        latents = denoise(
            pipeline.unet,
            pipeline.scheduler,
            noise,
            concatenate([without, given]),
            timesteps=make_timesteps(pipeline.scheduler, self.config.sample_steps, noise.device),
            guidance_scale=GRID_GUIDANCE,
            identity_channel=pipeline.identity_channel,
            shading_channel=pipeline.shading_channel,
        )
        images = decode_latents(pipeline.vae, latents)
        targets = decode_latents(pipeline.vae, batch["latents"])
        rows = [targets, batch["shading"].float() / 255, images]
        return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)

    def export(self, directory: Path) -> None:
        """The whole pipeline, loadable by `FaceMakeUpPipeline.from_pretrained`."""
        self.pipeline.save_pretrained(directory, licence=self.config.licence)
