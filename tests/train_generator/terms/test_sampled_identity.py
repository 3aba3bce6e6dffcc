"""Reward feedback: the facial perceptual loss on pictures that the model draws itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from faceclip.errors import ConfigError
from faceclip.training import parse_config
from faceclip.training.sampler import fetch
from makeup_plugin.diffusion import NoiseSchedule
from makeup_plugin.sampling import denoise, make_timesteps
from train_generator.adapter import add_adapter
from train_generator.config import PRESETS, GeneratorConfig, LossConfig
from train_generator.loading import build_pipeline
from train_generator.reference_features import reference_features
from train_generator.task import GeneratorTask
from train_generator.terms.sampled_identity import sampled_estimate, sampled_identity_loss, sampler_stops


@pytest.fixture
def task(arguments, tmp_path) -> GeneratorTask:
    words = [*arguments, f"out={tmp_path}", "loss.sampled_identity=0.5", "loss.sampled_steps=4"]
    config = parse_config(GeneratorConfig, words, presets=PRESETS)
    pipeline = build_pipeline(config)
    torch.manual_seed(3)
    add_adapter(pipeline, config.adapter)
    with torch.no_grad():  # fresh LoRA adds nothing, and its first factor would have no gradient
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    features = reference_features(
        Path(config.data.path),
        "train",
        size=config.size,
        vae=Path(config.base) / "vae",
        encoder=pipeline.joint_encoder,
        image_tower=pipeline.image_encoder,
        cache=Path(config.cache),
    )
    return GeneratorTask(pipeline, config, features)


@pytest.fixture
def batch(task) -> dict[str, torch.Tensor]:
    batch = fetch(task.validation_source, [(row, 0) for row in range(3)], 0)
    for name in ("keep_face", "keep_identity", "keep_shading"):
        batch[name] = torch.ones(3, dtype=torch.bool)
    return batch


def loss_of(task: GeneratorTask, batch: dict[str, torch.Tensor], drawn: int | None = None) -> torch.Tensor:
    """The loss of a batch, by the same draws at every call."""
    nothing = torch.zeros_like(batch["latents"])
    with torch.no_grad():
        sample = task.sample(batch, nothing, torch.zeros(len(nothing), dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    return sampled_identity_loss(
        sample, task.pipeline, task.faces, generator, steps=4, stops=task.stops, limit=2, drawn=drawn
    )


def test_stops_by_hand():
    # Leading timesteps of four steps of 1,000: 750, 500, 250, 0; trailing ones: 999, 749, 499, 249.
    leading = DDIMScheduler(timestep_spacing="leading")
    assert sampler_stops(leading, LossConfig(sampled_steps=4, sampled_below=500)) == [1, 2, 3]
    trailing = DDIMScheduler(timestep_spacing="trailing")
    assert sampler_stops(trailing, LossConfig(sampled_steps=4, sampled_below=498)) == [3]
    with pytest.raises(ConfigError, match=r"sampled_below=200.*249"):
        sampler_stops(trailing, LossConfig(sampled_steps=4, sampled_below=200))
    with pytest.raises(ConfigError, match=r"sampled_steps=1001.* 1000 steps"):
        sampler_stops(trailing, LossConfig(sampled_steps=1001))
    with pytest.raises(ConfigError, match=r"loss\.sampled_rows"):
        LossConfig(sampled_rows=0)


def test_the_last_estimate_is_what_the_pipeline_draws(task, batch):
    """DDIM's last step, to no noise, is the estimate of the clean picture."""
    pipeline, given = task.pipeline, task.conditions(batch)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        rescale_betas_zero_snr=True,
    )
    noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        drawn = denoise(
            pipeline.unet,
            pipeline.scheduler,
            noise,
            given,
            timesteps=make_timesteps(pipeline.scheduler, 4, "cpu"),
            identity_channel=pipeline.identity_channel,
            shading_channel=pipeline.shading_channel,
        )
        schedule = NoiseSchedule.from_scheduler(pipeline.scheduler)
        last, earlier = (
            sampled_estimate(pipeline, given, noise, steps=4, stop=stop, schedule=schedule) for stop in (3, 2)
        )
        torch.testing.assert_close(last, drawn)
        assert not torch.allclose(earlier, drawn, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_everything_that_is_trained_gets_a_gradient(task, batch, precision):
    """In bf16 too: casts that autocast remembers from the passes without a gradient would cut it off."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = loss_of(task, batch)
    assert 0 < loss < 2
    loss.backward()
    parts = ("unet", "identity_channel", "shading_channel")
    trained = {
        f"{part}.{name}": parameter
        for part in parts
        for name, parameter in getattr(task.pipeline, part).named_parameters()
        if parameter.requires_grad
    }
    still = {name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()}
    # Zero convolutions let nothing through to the rest of a fresh shading channel.
    assert not {name for name in still if not name.startswith("shading_channel.")}, still
    assert "shading_channel.controlnet_mid_block.weight" not in still
    assert all(parameter.grad is None for parameter in task.pipeline.vae.parameters())


def test_only_samples_that_know_person_and_pose_count(task, batch):
    batch["keep_shading"] = torch.tensor([False, True, True])
    batch["keep_face"] = batch["keep_identity"] = torch.tensor([True, True, False])
    loss = loss_of(task, batch)
    alone = {name: value[1:2] for name, value in batch.items()}
    torch.testing.assert_close(loss, loss_of(task, alone))
    other = dict(batch, target_identity=batch["target_identity"] * torch.tensor([[-1.0], [1.0], [-1.0]]))
    torch.testing.assert_close(loss, loss_of(task, other))
    batch["keep_shading"][:] = False
    assert loss_of(task, batch) == 0


def test_always_as_many_pictures_give_the_same_loss(task, batch):
    batch["keep_shading"] = torch.tensor([False, True, False])
    task.stops = task.stops[-1:]
    trained = [p for n, p in task.pipeline.unet.named_parameters() if "lora_A" in n]
    first, second = loss_of(task, batch), loss_of(task, batch, drawn=0)
    torch.testing.assert_close(first, second)
    expected, found = (torch.autograd.grad(loss, trained) for loss in (first, second))
    assert any(gradient.any() for gradient in expected)
    torch.testing.assert_close(found, expected)
    batch["keep_shading"][:] = False
    nothing = loss_of(task, batch, drawn=0)
    assert nothing == 0 and not any(gradient.any() for gradient in torch.autograd.grad(nothing, trained))


def test_validation_shows_finished_pictures_of_all_that_count(task):
    task.modules.eval()
    figures = task.validate(0)
    generator = torch.Generator().manual_seed(5)
    rows = np.random.default_rng(5).permutation(len(task.validation_source))[: task.config.validation_rows]
    batch = fetch(task.validation_source, [(int(row), 0) for row in rows], 5)
    told = (batch["keep_shading"] & (batch["keep_face"] | batch["keep_identity"])).nonzero().flatten()
    assert len(told) > 0
    torch.randn(batch["latents"].shape, generator=generator)  # what the other terms draw
    noise = torch.randn(batch["latents"].shape, generator=generator)
    with torch.no_grad():
        sample = task.sample(batch, noise, torch.zeros(len(noise), dtype=torch.int64))
        schedule = NoiseSchedule.from_scheduler(task.pipeline.scheduler)
        given = sample.conditions.take(told)
        estimate = sampled_estimate(task.pipeline, given, noise[told], steps=4, stop=3, schedule=schedule)
        expected = task.faces.distance(estimate, sample, told)
    assert figures["loss_sampled_identity"] == pytest.approx(float(expected), rel=1e-4)
    rest = {name: value for name, value in figures.items() if name.startswith("loss_")}
    weights = {name: getattr(task.config.loss, name.removeprefix("loss_"), 1.0) for name in rest}  # noise: 1
    assert figures["loss"] == pytest.approx(sum(weights[name] * rest[name] for name in rest), rel=1e-5)


def test_the_loss_needs_the_shading_channel(arguments, tmp_path):
    words = [*arguments, f"out={tmp_path}", "loss.sampled_identity=0.5", "adapter.shading=false"]
    with pytest.raises(ConfigError, match=r"loss\.sampled_identity.*adapter\.shading"):
        parse_config(GeneratorConfig, words, presets=PRESETS)
