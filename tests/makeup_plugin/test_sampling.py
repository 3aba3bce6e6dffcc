"""The denoising loop and the way to pixels, step by step against arithmetic written out here."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    RePaintScheduler,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from faceclip.errors import ConfigError, NonFiniteLatentsError
from makeup_plugin.conditioning import Conditions, concatenate, predict, time_ids
from makeup_plugin.marking import watermark
from makeup_plugin.sampling import (
    DenoisingState,
    decode,
    denoise,
    guidance_embedding,
    make_timesteps,
    seeds_of,
    steps_after,
    steps_until,
)
from makeup_plugin.shading import shading_channel_from_unet
from tests.makeup_plugin.conftest import make_channel


def conditions_of(seed: int, count: int = 1) -> Conditions:
    generator = torch.Generator().manual_seed(seed)
    return Conditions(
        tokens=torch.randn(count, 77, 48, generator=generator),
        pooled=torch.randn(count, 24, generator=generator),
        time_ids=time_ids(32, 32, count),
    )


@pytest.fixture
def base(base_parts):
    from makeup_plugin.pipeline import FaceMakeUpPipeline

    pipeline = FaceMakeUpPipeline(**base_parts())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run(base, latents: Tensor, conditions: Conditions, steps: int, **options) -> Tensor:
    timesteps = make_timesteps(base.scheduler, steps, latents.device)
    return denoise(base.unet, base.scheduler, latents, conditions, timesteps=timesteps, **options)


LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_guidance_moves_away_from_the_first_half(base) -> None:
    without, given = conditions_of(0, 2), conditions_of(5, 2)
    base.scheduler = DDIMScheduler(clip_sample=False)
    found = run(base, LATENTS, concatenate([without, given]), 2, guidance_scale=3.0)
    scheduler, latents = DDIMScheduler(clip_sample=False), LATENTS
    scheduler.set_timesteps(2)
    for step in scheduler.timesteps:
        negative, positive = (predict(base.unet, latents, step, half) for half in (without, given))
        latents = scheduler.step(negative + 3.0 * (positive - negative), step, latents).prev_sample
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=1e-4)
    alone = run(base, LATENTS, given, 1)
    scheduler.set_timesteps(1)
    prediction = predict(base.unet, LATENTS, scheduler.timesteps[0], given)
    wanted = scheduler.step(prediction, scheduler.timesteps[0], LATENTS).prev_sample
    torch.testing.assert_close(alone, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_inputs_and_start_are_scaled_as_the_scheduler_says(base) -> None:
    """Euler's latents have the noise's own size, and are scaled before the UNet sees them."""
    base.scheduler = EulerDiscreteScheduler()
    given = conditions_of(5, 2)
    found = run(base, LATENTS, given, 2)
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(2)
    latents = LATENTS * scheduler.init_noise_sigma
    assert scheduler.init_noise_sigma > 2
    for step in scheduler.timesteps:
        prediction = predict(base.unet, scheduler.scale_model_input(latents, step), step, given)
        latents = scheduler.step(prediction, step, latents).prev_sample
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_stochastic_scheduler_draws_from_the_generator(base) -> None:
    base.scheduler = EulerAncestralDiscreteScheduler()

    def drawn(seed: int) -> Tensor:
        return run(base, LATENTS, conditions_of(5, 2), 3, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


@torch.no_grad()
def test_guidance_without_both_halves_is_rejected(base) -> None:
    with pytest.raises(ConfigError, match="4 rows"):
        run(base, LATENTS, conditions_of(5, 2), 1, guidance_scale=3.0)


def test_impossible_steps_are_named() -> None:
    with pytest.raises(ConfigError, match=r"num_inference_steps=2000 .*DDIMScheduler"):
        make_timesteps(DDIMScheduler(), 2000, "cpu")


def test_a_scheduler_whose_steps_need_more_than_latents_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"^scheduler: RePaintScheduler .*original_image"):
        make_timesteps(RePaintScheduler(), 4, "cpu")


def test_a_schedule_of_the_callers_own_stands_in_place_of_steps() -> None:
    assert make_timesteps(EulerDiscreteScheduler(), 9, "cpu", timesteps=(800, 300)).tolist() == [800, 300]
    scheduler = EulerDiscreteScheduler()
    assert len(make_timesteps(scheduler, 9, "cpu", sigmas=[5.0, 1.0, 0.0])) == 2
    assert scheduler.sigmas.tolist() == [5.0, 1.0, 0.0]
    assert make_timesteps(DDIMScheduler(), 1, "cpu").tolist() == [0]
    with pytest.raises(ConfigError, match=r"^timesteps and sigmas "):
        make_timesteps(EulerDiscreteScheduler(), 9, "cpu", timesteps=[800], sigmas=[5.0])
    for empty in ({"timesteps": []}, {"sigmas": ()}):
        with pytest.raises(ConfigError, match=rf"^{next(iter(empty))}: "):
            make_timesteps(EulerDiscreteScheduler(), 9, "cpu", **empty)
    with pytest.raises(ConfigError, match=r"^sigmas: DDIMScheduler "):
        make_timesteps(DDIMScheduler(), 9, "cpu", sigmas=[5.0])
    with pytest.raises(ConfigError, match=r"^timesteps=\[300, 800\] .*DDPMScheduler"):
        make_timesteps(DDPMScheduler(), 9, "cpu", timesteps=[300, 800])
    for unfit in (DDIMInverseScheduler(), FlowMatchEulerDiscreteScheduler()):
        with pytest.raises(ConfigError, match=rf"^scheduler: {type(unfit).__name__} "):
            make_timesteps(unfit, 2, "cpu")


def test_a_pass_is_divided_by_shares_of_the_noise() -> None:
    scheduler = EulerDiscreteScheduler(timestep_spacing="leading")
    timesteps = make_timesteps(scheduler, 10, "cpu")
    assert timesteps.tolist() == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert steps_until(scheduler, timesteps, 1).tolist() == timesteps.tolist()
    assert steps_until(scheduler, timesteps, 0.5).tolist() == [900, 800, 700, 600, 500]
    assert steps_until(scheduler, timesteps, 0.45).tolist() == [900, 800, 700, 600]
    assert steps_after(scheduler, timesteps, 0.5).tolist() == [400, 300, 200, 100, 0] and scheduler.begin_index == 5
    assert steps_after(scheduler, timesteps, 0.95).tolist() == [0] and scheduler.begin_index == 9
    with pytest.raises(ConfigError, match=r"^denoising_end=0\.05 "):
        steps_until(scheduler, timesteps, 0.05)
    with pytest.raises(ConfigError, match=r"^denoising_start=0\.9999 "):
        steps_after(scheduler, timesteps, 0.9999)
    with pytest.raises(ConfigError, match=r"^denoising_start: HeunDiscreteScheduler "):
        steps_after(HeunDiscreteScheduler(), timesteps, 0.5)
    ddim = DDIMScheduler()
    assert steps_after(ddim, make_timesteps(ddim, 10, "cpu"), 0.75).tolist() == [200, 100, 0]


@torch.no_grad()
def test_guidance_is_brought_back_to_the_size_of_the_conditional_prediction(base) -> None:
    without, given = conditions_of(0, 2), conditions_of(5, 2)
    base.scheduler = DDIMScheduler(clip_sample=False)
    options = {"guidance_scale": 4.0, "guidance_rescale": 0.75}
    found = run(base, LATENTS, concatenate([without, given]), 1, **options)
    negative, positive = (predict(base.unet, LATENTS, torch.tensor(0), half) for half in (without, given))
    guided = negative + 4.0 * (positive - negative)
    sizes = [x.std(dim=(1, 2, 3), keepdim=True) for x in (positive, guided)]
    guided = 0.75 * guided * sizes[0] / sizes[1] + 0.25 * guided
    wanted = base.scheduler.step(guided, torch.tensor(0), LATENTS).prev_sample
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_eta_is_of_schedulers_that_have_it(base) -> None:
    base.scheduler, given = DDIMScheduler(clip_sample=False), conditions_of(5, 2)

    def drawn(seed: int, eta: float) -> Tensor:
        return run(base, LATENTS, given, 3, eta=eta, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1, 0.0), drawn(2, 0.0))
    assert torch.equal(drawn(1, 0.5), drawn(1, 0.5)) and not torch.equal(drawn(1, 0.5), drawn(2, 0.5))
    assert not torch.equal(drawn(1, 0.5), drawn(1, 1.0))
    base.scheduler = EulerDiscreteScheduler()
    with pytest.raises(ConfigError, match=r"^eta=0\.5: EulerDiscreteScheduler "):
        drawn(1, 0.5)


@torch.no_grad()
def test_steps_are_announced_and_other_controls_see_their_inputs(base) -> None:
    base.scheduler, given = EulerDiscreteScheduler(), conditions_of(5, 2)
    announced: list[int] = []
    seen: list[tuple] = []

    def residuals(*arguments) -> None:
        assert len(announced) == len(seen) + 1
        seen.append(arguments)

    begin = run(base, LATENTS, given, 2, interrupted=lambda: True)
    torch.testing.assert_close(begin, LATENTS * base.scheduler.init_noise_sigma)
    found = run(base, LATENTS, given, 2, before_step=announced.append, residuals=residuals)
    assert announced == [0, 1] == [index for index, *_ in seen]
    timesteps = make_timesteps(base.scheduler, 2, "cpu")
    assert [timestep for _, _, timestep, _ in seen] == timesteps.tolist()
    assert all(conditions is given for *_, conditions in seen)
    assert torch.equal(seen[0][1], base.scheduler.scale_model_input(begin, timesteps[0]))
    started = run(base, begin, given, 2, started=True)
    torch.testing.assert_close(started, found)


@torch.no_grad()
def test_the_shading_channel_acts_whole_unless_a_scale_is_given(base) -> None:
    channel = make_channel(base.unet)
    channel.attach(base.unet)
    control = shading_channel_from_unet(base.unet, vae_scale_factor=4).eval()
    torch.nn.init.normal_(control.controlnet_mid_block.weight, std=0.3)
    given = replace(conditions_of(5, 2), identity=torch.ones(2, 16), image_tokens=torch.ones(2, 5, 20))
    given = replace(given, shading=torch.rand(2, 3, 32, 32), shading_keep=torch.ones(2))
    parts = {"identity_channel": channel, "shading_channel": control}
    found, whole, half = (
        run(base, LATENTS, given, 1, **parts, **scale) for scale in ({}, {"shading_scale": 1}, {"shading_scale": 0.5})
    )
    assert torch.equal(found, whole) and not torch.equal(found, half)


@torch.no_grad()
def test_the_first_step_whose_latents_are_not_finite_is_named(base) -> None:
    def spoil(index: int, timestep: Tensor, state: DenoisingState) -> DenoisingState:
        return replace(state, latents=state.latents * torch.nan) if index == 0 else state

    with pytest.raises(NonFiniteLatentsError, match="after step 2 of 4"):
        run(base, LATENTS, conditions_of(5, 2), 4, after_step=spoil)


def test_a_schedule_begins_at_its_first_step_whatever_the_scheduler_did_before() -> None:
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    timesteps = make_timesteps(scheduler, 3, torch.device("cpu"))
    assert scheduler.begin_index == 0 and len(timesteps) == 3


@torch.no_grad()
def test_an_interrupt_keeps_the_latents_of_the_last_step(base) -> None:
    given, asked = conditions_of(5, 2), []

    def interrupted() -> bool:
        asked.append(True)
        return len(asked) == 3

    states = []

    def watch(index: int, timestep: Tensor, state: DenoisingState) -> DenoisingState:
        states.append(state)
        return state

    found = run(base, LATENTS, given, 5, interrupted=interrupted, after_step=watch)
    assert len(states) == 2 and torch.equal(found, states[-1].latents)
    assert torch.equal(run(base, LATENTS, given, 5, interrupted=lambda: True), LATENTS)


@torch.no_grad()
def test_what_is_changed_after_a_step_is_used_from_the_next_one_on(base) -> None:
    base.scheduler = DDIMScheduler(clip_sample=False)
    first, second = conditions_of(5, 2), conditions_of(6, 2)

    def change(index: int, timestep: Tensor, state: DenoisingState) -> DenoisingState:
        assert state.conditions is (first, second)[index > 0]
        return replace(state, conditions=second)

    found = run(base, LATENTS, first, 2, after_step=change)
    scheduler, latents = DDIMScheduler(clip_sample=False), LATENTS
    scheduler.set_timesteps(2)
    for step, given in zip(scheduler.timesteps, (first, second), strict=True):
        latents = scheduler.step(predict(base.unet, latents, step, given), step, latents).prev_sample
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_latents_are_unscaled_and_marked_on_request(base) -> None:
    vae, processor = base.vae, base.image_processor
    vae.register_to_config(shift_factor=0.5)
    plain = decode(vae, processor, LATENTS, output_type="pt", marked=False)
    pixels = vae.decode(LATENTS / vae.config.scaling_factor + 0.5).sample
    torch.testing.assert_close(plain, (pixels / 2 + 0.5).clamp(0, 1))
    marked = decode(vae, processor, LATENTS, output_type="np", marked=True)
    assert marked.shape == (2, 32, 32, 3)
    for row, image in enumerate(marked):
        assert np.array_equal(image, watermark.embed(plain[row].permute(1, 2, 0).numpy()))
    turned = decode(vae, processor, LATENTS, output_type="np", marked=True, finish=lambda pixels: 1 - pixels.flip(3))
    assert np.array_equal(turned, 1 - marked[:, :, ::-1])
    pictures = decode(vae, processor, LATENTS, output_type="pil", marked=True)
    assert np.array_equal(np.asarray(pictures[1]), (marked[1] * 255).round().astype(np.uint8))


@torch.no_grad()
def test_a_16_bit_vae_decodes_in_32_bits_where_it_would_overflow(base) -> None:
    vae = base.vae
    vae.register_to_config(force_upcast=True)
    vae.half()
    seen = []
    vae.decoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].dtype))
    decode(vae, base.image_processor, LATENTS, output_type="pt", marked=False)
    assert seen == [torch.float32] and vae.dtype == torch.float16


@torch.no_grad()
def test_latents_that_a_callback_spoils_after_the_last_step_are_refused(base) -> None:
    def spoil(index: int, timestep: Tensor, state: DenoisingState) -> DenoisingState:
        latents = state.latents.clone()
        if index == 1:
            latents[0, 0, 0, 0] = torch.nan
        return replace(state, latents=latents)

    with pytest.raises(NonFiniteLatentsError, match="after step 2 of 2"):
        run(base, LATENTS, conditions_of(5, 2), 2, after_step=spoil)


@torch.no_grad()
def test_one_picture_that_is_not_finite_is_enough_to_refuse_all(base) -> None:
    latents = LATENTS.clone()
    latents[0] = torch.nan
    with pytest.raises(NonFiniteLatentsError, match="pixels"):
        decode(base.vae, base.image_processor, latents, output_type="np", marked=False)
    decode(base.vae, base.image_processor, latents[1:], output_type="np", marked=False)


def test_every_image_has_the_seed_of_its_generator() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 9)]
    assert seeds_of(generators, 2) == [3, 9] and seeds_of(generators[1], 3) == [9, 9, 9]
    assert seeds_of(None, 2) == [None, None]


def test_a_distilled_unet_gets_the_guidance_scale_as_waves(base) -> None:
    """As `StableDiffusionXLPipeline.get_guidance_scale_embedding` of diffusers, which takes the scale less 1."""
    assert guidance_embedding(3.0, 2, base.unet) is None
    base.unet.register_to_config(time_cond_proj_dim=9)
    found = guidance_embedding(3.0, 2, base.unet)
    theirs = StableDiffusionXLPipeline.get_guidance_scale_embedding(None, torch.tensor([2.0, 2.0]), 9)
    torch.testing.assert_close(found, theirs)
