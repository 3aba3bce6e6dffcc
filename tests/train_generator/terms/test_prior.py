"""Prior preservation: words alone are held to the base, everything else is free."""

import torch

from faceclip.training import parse_config
from faceclip.training.sampler import fetch
from makeup_plugin.conditioning import predict
from tests.stages import run
from train_generator.__main__ import main
from train_generator.adapter import add_adapter
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.features import load_features
from train_generator.loading import build_pipeline
from train_generator.task import GeneratorTask
from train_generator.terms.prior import prior_loss


def test_only_words_alone_are_held_to_the_base(arguments, tmp_path):
    config = parse_config(GeneratorConfig, [*arguments, "loss.alignment=0", f"out={tmp_path}"], presets=PRESETS)
    pipeline = build_pipeline(config)
    torch.manual_seed(3)
    add_adapter(pipeline, config.adapter)
    task = GeneratorTask(pipeline, config, load_features(config, pipeline, "validation"))
    batch = fetch(task.validation_source, [(row, 0) for row in range(4)], 0)
    on = torch.tensor([True, False, False, True])
    batch |= dict.fromkeys(("keep_face", "keep_identity"), on)
    batch["keep_shading"] = torch.tensor([True, False, True, False])  # row 1 alone sees nothing but words
    noise, timesteps = torch.randn_like(batch["latents"]), torch.tensor([100, 300, 500, 700])
    fresh = task.sample(batch, noise, timesteps)
    with torch.no_grad():  # fresh LoRA adds nothing: this is the base
        base = predict(pipeline.unet, fresh.noisy[1:2], timesteps[1:2], fresh.conditions.take(torch.tensor([1])))
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    sample = task.sample(batch, noise, timesteps)
    loss = prior_loss(sample, pipeline.unet)
    (gradient,) = torch.autograd.grad(loss, sample.prediction, retain_graph=True)
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).tolist() == [False, True, False, False]
    expected = (sample.prediction[1:2] - base).square().mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    same = prior_loss(sample, pipeline.unet, fixed=True)
    torch.testing.assert_close(same, loss)
    (other,) = torch.autograd.grad(same, sample.prediction, retain_graph=True)
    torch.testing.assert_close(other, gradient, atol=1e-7, rtol=1e-3)
    # LoRA counts again, and is trained by the loss.
    again = task.sample(batch, noise, timesteps)
    torch.testing.assert_close(again.prediction, sample.prediction)
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for n, p in pipeline.unet.named_parameters() if "lora_A" in n)


def test_a_whole_unet_has_no_base_to_compare_with(arguments, tmp_path):
    status, output = run(main, *arguments, f"out={tmp_path}", "loss.prior=0.5", "adapter.unet=full")
    assert status == 2
    assert "loss.prior" in output
