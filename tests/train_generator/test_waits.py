"""A step of stage 2 on a GPU never waits for it: shown on fake tensors, which have a device and no values."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from faceclip.training import StepContext, parse_config
from faceclip.training.sampler import fetch
from tests.waits import fake_batch, on_fake_gpu
from train_generator.__main__ import prepare
from train_generator.config import PRESETS, GeneratorConfig

EVERYTHING = [
    "loss.identity=0.1",
    "loss.identity_contrast=0.1",
    "loss.sampled_identity=0.2",
    "loss.sampled_rows=2",
    "loss.sampled_steps=3",
    "loss.offset_noise=0.1",
    "loss.min_snr_gamma=5",
    "loss.prior=0.1",
]


@pytest.mark.parametrize("whole", [False, True])
def test_nothing_is_read_or_copied(arguments, tmp_path, monkeypatch, whole):
    words = [*arguments, *EVERYTHING, f"out={tmp_path / 'run'}", "trainer.device=cpu"]
    words += ["adapter.unet=full", "loss.prior=0"] if whole else []
    trainer = prepare(parse_config(GeneratorConfig, words, presets=PRESETS))
    task = trainer.task
    batch = fetch(trainer.source, [(row, 0) for row in range(3)], 0)
    for name in ("randn", "randint", "rand"):  # there is no generator of a fake device
        monkeypatch.setattr(torch, name, without_generator(getattr(torch, name)))
    task.same_work = True
    set_timesteps = task.pipeline.scheduler.set_timesteps  # the host's own tables, which stay real

    def set_real(steps: int) -> None:
        with unset_fake_temporarily():
            set_timesteps(steps)

    monkeypatch.setattr(task.pipeline.scheduler, "set_timesteps", set_real)
    with on_fake_gpu(task.modules) as copies:
        given = fake_batch(batch)
        task.schedule = task.schedule.to("cuda")  # once in a run
        copies.seen.clear()
        device = torch.device("cuda")
        context = StepContext(step=0, steps=1, micro_step=0, device=device, generator=torch.Generator())
        loss, parts = task.loss(given, context)
    assert loss.device.type == "cuda" and {value.device.type for value in parts.values()} == {"cuda"}
    assert parts.keys() >= {"loss_identity", "loss_sampled_identity", "loss_alignment"}
    assert not copies.seen


def without_generator(draw):
    """A function of torch that draws without the generator it is given."""

    def drawn(*sizes, generator: torch.Generator | None = None, **options) -> Tensor:
        return draw(*sizes, **options)

    return drawn
