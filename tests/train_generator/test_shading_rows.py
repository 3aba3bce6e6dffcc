"""The shading channel of stage 2 runs on the samples that keep their map, and what it gives is as if it ran on all."""

import pytest
import torch

from faceclip.training import parse_config
from faceclip.training.sampler import fetch
from train_generator.adapter import add_adapter
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.features import load_features
from train_generator.loading import build_pipeline
from train_generator.task import GeneratorTask


@pytest.mark.parametrize(
    ("keep", "rows"), [([True, False, True, False], 2), ([True] * 4, 4), ([False] * 4, 4)], ids=["some", "all", "none"]
)
def test_the_shading_channel_runs_on_samples_with_a_map_alone(arguments, tmp_path, keep, rows):
    config = parse_config(GeneratorConfig, [*arguments, "loss.alignment=0", f"out={tmp_path}"], presets=PRESETS)
    pipeline = build_pipeline(config)
    torch.manual_seed(3)
    add_adapter(pipeline, config.adapter)
    channel = pipeline.shading_channel
    with torch.no_grad():
        for convolution in (*channel.controlnet_down_blocks, channel.controlnet_mid_block):
            convolution.weight.normal_(std=0.1)
    task = GeneratorTask(pipeline, config, load_features(config, pipeline, "validation"))
    batch = fetch(task.validation_source, [(row, 0) for row in range(4)], 0)
    batch |= {"keep_identity": torch.ones(4, dtype=torch.bool), "keep_shading": torch.tensor(keep)}
    noise, timesteps = torch.randn_like(batch["latents"]), torch.tensor([100, 300, 500, 700])
    seen: list[int] = []
    channel.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))

    def gradients() -> tuple[torch.Tensor, list[torch.Tensor]]:
        prediction = task.sample(batch, noise, timesteps).prediction
        return prediction, list(torch.autograd.grad(prediction.square().sum(), list(channel.parameters())))

    some, of_some = gradients()
    task.same_work = True
    every, of_all = gradients()
    assert seen == [rows, 4]
    torch.testing.assert_close(some, every, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_some, of_all, atol=1e-4, rtol=1e-4)
    assert any(gradient.any() for gradient in of_some) == any(keep)
