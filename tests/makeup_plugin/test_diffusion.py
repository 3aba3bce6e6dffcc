"""The noise schedule against values worked out by hand and against diffusers' schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler

from faceclip.errors import ConfigError
from makeup_plugin.diffusion import NoiseSchedule

# abar = .9, .5, .1: SNR 9, 1, 1/9.
ALPHAS = torch.tensor([0.9, 0.5, 0.1])
STEPS = torch.tensor([0, 1, 2])


def schedule(kind: str) -> NoiseSchedule:
    return NoiseSchedule(alphas_cumprod=ALPHAS, prediction_type=kind)


def test_signal_to_noise_by_hand():
    assert len(schedule("epsilon")) == 3
    torch.testing.assert_close(schedule("epsilon").snr(STEPS.flip(0)), torch.tensor([1 / 9, 1.0, 9.0]))


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("epsilon", [5 / 9, 1.0, 1.0]),
        ("v_prediction", [5 / 10, 1 / 2, (1 / 9) / (10 / 9)]),
        ("sample", [5.0, 1.0, 1 / 9]),
    ],
)
def test_min_snr_weights(kind, weights):
    torch.testing.assert_close(schedule(kind).min_snr_weights(STEPS, 5.0), torch.tensor(weights))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_targets_and_estimates_agree_with_the_scheduler(kind):
    scheduler = DDIMScheduler(prediction_type=kind)
    ours = NoiseSchedule.from_scheduler(scheduler)
    assert len(ours) == scheduler.config.num_train_timesteps and ours.prediction_type == kind
    torch.manual_seed(0)
    clean, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    timesteps = torch.tensor([10, 500, 900])
    noisy = ours.add_noise(clean, noise, timesteps)
    assert torch.equal(noisy, scheduler.add_noise(clean, noise, timesteps))
    target = ours.target(clean, noise, timesteps)
    if kind == "v_prediction":
        torch.testing.assert_close(target, scheduler.get_velocity(clean, noise, timesteps))
    else:
        assert target is {"epsilon": noise, "sample": clean}[kind]
    torch.testing.assert_close(ours.clean(target, noisy, timesteps), clean, atol=1e-4, rtol=1e-4)


def test_noise_again_lies_between_the_share_and_the_timestep():
    ours = NoiseSchedule.from_scheduler(DDIMScheduler())
    clean, timesteps = torch.full((2000, 1, 2, 2), 3.0, requires_grad=True), torch.arange(2000) // 2
    noisy, lower = ours.noise_again(clean, timesteps, torch.Generator().manual_seed(0), least=0.5)
    assert (lower <= timesteps).all() and (lower >= timesteps // 2).all()
    usual = ours.noise_again(clean, timesteps, torch.Generator().manual_seed(0))
    assert torch.equal(usual[0], noisy) and torch.equal(usual[1], lower)
    alphas = ours.alphas_cumprod[lower].view(-1, 1, 1, 1)
    noise = (noisy.detach() - alphas.sqrt() * 3) / (1 - alphas).sqrt()
    assert abs(float(noise.mean())) < 0.03 and float(noise.std()) == pytest.approx(1, abs=0.03)
    noisy.sum().backward()
    torch.testing.assert_close(clean.grad, alphas.sqrt().expand_as(clean))


def test_an_unknown_prediction_type_is_named():
    with pytest.raises(ConfigError, match=r"prediction_type .*'flow'"):
        schedule("flow")
