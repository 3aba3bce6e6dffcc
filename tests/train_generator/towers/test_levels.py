"""Which noise levels the base trains on, and how much each counts."""

import pytest
import torch

from faceclip.errors import ConfigError
from makeup_plugin.diffusion import NoiseSchedule
from train_generator.towers.base import make_scheduler
from train_generator.towers.levels import LevelConfig, draw_timesteps, level_weights


def draw(config: LevelConfig, count: int = 20_000) -> torch.Tensor:
    return draw_timesteps(config, count, 1000, torch.Generator().manual_seed(3))


def test_a_uniform_draw_is_the_one_it_always_was():
    expected = torch.randint(0, 1000, (64,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw(LevelConfig(), 64), expected)
    assert level_weights(LevelConfig(), NoiseSchedule.from_scheduler(make_scheduler()), expected) is None


def test_a_logit_normal_draw_has_its_median_and_quartiles():
    levels = draw(LevelConfig(draw="logit-normal", mean=0.5, deviation=0.8)).float() / 1000
    expected = torch.sigmoid(0.5 + 0.8 * torch.tensor([-0.6745, 0.0, 0.6745]))
    torch.testing.assert_close(levels.quantile(torch.tensor([0.25, 0.5, 0.75])), expected, atol=0.01, rtol=0)
    assert draw(LevelConfig(draw="logit-normal", mean=40.0)).max() == 999


def test_min_snr_weighs_a_velocity_by_hand():
    schedule = NoiseSchedule(alphas_cumprod=torch.tensor([0.99, 0.5, 0.0]), prediction_type="v_prediction")
    weights = level_weights(LevelConfig(min_snr=5.0), schedule, torch.tensor([0, 1, 2]))
    assert weights.shape == (3, 1, 1, 1)
    # SNR 99, 1, 0: min(SNR, 5) / (SNR + 1)
    torch.testing.assert_close(weights.flatten(), torch.tensor([0.05, 0.5, 0.0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "key"), [({"draw": "normal"}, "draw"), ({"deviation": 0.0}, "deviation"), ({"min_snr": -1.0}, "min_snr")]
)
def test_settings_that_cannot_be(values, key):
    with pytest.raises(ConfigError, match=rf"^levels\.{key}: "):
        LevelConfig(**values)
