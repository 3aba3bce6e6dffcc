"""What one step of the trainer does: its draws, rate, clipping and means, and what validation sees."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from faceclip.training import ContrastiveTask, MapSource, StepContext, Task, Trainer, TrainerConfig
from faceclip.training.sampler import OrderedSampler


class Rows(MapSource):
    """Seven samples that say which they are and in which epoch they are drawn."""

    def __len__(self) -> int:
        return 7

    def get(self, index: int, rng: np.random.Generator) -> dict:
        return {"x": np.float32(index), "draw": rng.random()}


class Plane(Task):
    """A linear model that notes what it is shown."""

    def __init__(self, scale: float = 1.0) -> None:
        self.modules = nn.ModuleDict({"net": nn.Linear(1, 1)})
        with torch.no_grad():
            self.modules["net"].weight.fill_(2.0)
            self.modules["net"].bias.fill_(-1.0)
        self.scale = scale
        self.seen: list[dict] = []
        self.validated: list[dict] = []

    def loss(self, batch: dict, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(
            {
                "step": context.step,
                "steps": context.steps,
                "micro": context.micro_step,
                "rows": batch["x"].int().tolist(),
                "draws": batch["draw"].tolist(),
                "torch": torch.rand(()).item(),
                "generator": torch.rand((), generator=context.generator).item(),
                "training": self.modules.training,
                "weight": self.modules["net"].weight.item(),
            }
        )
        error = self.scale * self.modules["net"](batch["x"][:, None]).square().mean()
        return error, {"doubled": 2 * error.detach()}

    def validate(self, step: int) -> dict[str, float]:
        noted = {"step": step, "training": self.modules.training, "grad": torch.is_grad_enabled()}
        noted |= {"torch": torch.rand(()).item(), "weight": self.modules["net"].weight.item()}
        self.validated.append(noted)
        return {"step": float(step)}

    def export(self, directory: Path) -> None:
        save_file({"weight": self.modules["net"].weight.detach().clone()}, directory / "net.safetensors")


def config(**changes) -> TrainerConfig:
    base = {"steps": 4, "batch_size": 3, "warmup_steps": 0, "schedule": "constant", "device": "cpu", "log_every": 1}
    return TrainerConfig(**(base | changes))


def run(folder: Path, task: Plane | None = None, **changes) -> tuple[Plane, list[dict], list[dict]]:
    """The task, the optimizer's state of affairs before every step, and the log's training lines."""
    task = task or Plane()
    trainer, before = Trainer(config(**changes), task, Rows(), folder), []

    def note(optimizer: torch.optim.Optimizer, *_) -> None:
        gradient = torch.cat([p.grad.flatten() for p in task.modules.parameters()])
        rates = [group["lr"] for group in optimizer.param_groups]
        before.append({"gradient": gradient.clone(), "rates": rates})

    trainer.optimizer.register_step_pre_hook(note)
    trainer.fit()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return task, before, [line for line in lines if line["kind"] == "train"]


def test_draws_of_a_step_are_those_of_earlier_releases(tmp_path: Path) -> None:
    """By their formula: a run of an earlier release, resumed, must draw the same."""
    task, _, _ = run(tmp_path, seed=5)
    for step, seen in enumerate(task.seen):
        assert seen["torch"] == pytest.approx(torch.rand((), generator=seeded(5 * 1_000_003 + step)).item())
        own = torch.rand((), generator=seeded(7924 * 1_000_003 + step)).item()
        assert seen["generator"] == pytest.approx(own)
    draws = [seen[name] for seen in task.seen for name in ("torch", "generator")]
    assert len(set(draws)) == 8  # every step draws anew, and its two streams differ


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number * 4096)  # of rank 0


def test_samples_come_in_the_samplers_order_with_the_draws_of_their_epoch(tmp_path: Path) -> None:
    task, _, _ = run(tmp_path, steps=3, accumulate=2, seed=5)
    rows = [row for seen in task.seen for row in seen["rows"]]
    slots = OrderedSampler(7, 5).slots(0, 18)
    assert rows == [index for index, _ in slots]
    draws = [draw for seen in task.seen for draw in seen["draws"]]
    assert draws == [np.random.default_rng([5, 1, index, epoch]).random() for index, epoch in slots]
    assert [(seen["step"], seen["micro"], seen["steps"]) for seen in task.seen] == [
        *((0, 0, 3), (0, 1, 3), (1, 0, 3), (1, 1, 3), (2, 0, 3), (2, 1, 3)),
    ]


def test_the_rate_follows_the_schedule(tmp_path: Path) -> None:
    options = {"steps": 6, "warmup_steps": 2, "schedule": "cosine", "learning_rate": 0.5, "min_lr_ratio": 0.2}
    _, before, log = run(tmp_path, **options)
    # 0.2 + 0.8 · (1 + cos(π k / 3)) / 2 for k = 0 … 3 after the warm-up.
    expected = [0.25, 0.5, 0.5, 0.4, 0.2, 0.1]
    for noted, line, rate in zip(before, log, expected, strict=True):
        assert noted["rates"] == pytest.approx([rate, rate])  # matrices, and what does not decay
        assert line["learning_rate"] == pytest.approx(rate)


def test_groups_of_a_task_keep_their_own_rates(tmp_path: Path) -> None:
    task = Plane()
    weight, bias = task.modules.parameters()
    task.parameter_groups = lambda: [{"params": [weight], "lr": 0.1}, {"params": [bias], "lr": 0.01}]
    _, before, _ = run(tmp_path, task, warmup_steps=2, steps=2)
    assert [noted["rates"] for noted in before] == [pytest.approx([0.05, 0.005]), pytest.approx([0.1, 0.01])]


def test_biases_do_not_decay(tmp_path: Path) -> None:
    trainer = Trainer(config(weight_decay=0.3), task := Plane(), Rows(), tmp_path)
    groups = trainer.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert groups[1]["params"][0] is task.modules["net"].bias


def test_gradients_are_clipped_to_the_norm(tmp_path: Path) -> None:
    _, free, log = run(tmp_path / "free", Plane(scale=10.0), steps=1, max_grad_norm=0)
    _, clipped, clipped_log = run(tmp_path / "clipped", Plane(scale=10.0), steps=1, max_grad_norm=0.25)
    norm = free[0]["gradient"].norm().item()
    assert norm > 10 and clipped[0]["gradient"].norm().item() == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(clipped[0]["gradient"], free[0]["gradient"] * 0.25 / norm, rtol=1e-4, atol=0)
    assert log[0]["grad_norm"] == pytest.approx(norm) == clipped_log[0]["grad_norm"]  # before clipping


def test_chunks_give_the_mean_gradient_and_the_mean_figures(tmp_path: Path) -> None:
    _, whole, log = run(tmp_path / "whole", steps=2, batch_size=6, max_grad_norm=0)
    _, parts, parts_log = run(tmp_path / "parts", steps=2, accumulate=2, max_grad_norm=0)
    for one, two in zip(whole, parts, strict=True):
        torch.testing.assert_close(one["gradient"], two["gradient"])
    for one, two in zip(log, parts_log, strict=True):
        assert [one[n] for n in ("loss", "doubled")] == pytest.approx([two[n] for n in ("loss", "doubled")])
        assert one["doubled"] == pytest.approx(2 * one["loss"])


def test_a_logged_figure_is_the_mean_since_the_last_one(tmp_path: Path) -> None:
    _, _, each = run(tmp_path / "each")
    began = time.perf_counter()
    _, _, some = run(tmp_path / "some", log_every=2)
    passed = time.perf_counter() - began
    assert [line["step"] for line in some] == [2, 4]
    for line, pair in zip(some, (each[:2], each[2:]), strict=True):
        assert line["loss"] == pytest.approx(sum(one["loss"] for one in pair) / 2)
        assert 0 <= line["data_percent"] <= 100
        assert line["samples_per_second"] > 6 / passed  # 2 steps of 3 rows, in less than the whole time


def test_validation_is_in_evaluation_mode_by_the_averages_and_with_its_own_seed(tmp_path: Path) -> None:
    task, _, _ = run(tmp_path, steps=6, validate_every=2, ema_decay=0.9, learning_rate=0.1, seed=5)
    assert [noted["step"] for noted in task.validated] == [2, 4, 6]
    assert not any(noted["training"] or noted["grad"] for noted in task.validated)
    assert {noted["torch"] for noted in task.validated} == {
        torch.rand((), generator=torch.Generator().manual_seed(5)).item()
    }
    assert all(seen["training"] for seen in task.seen)
    first, second = (task.seen[step]["weight"] for step in (1, 2))  # after one and two steps
    average = 2 + 9 / 11 * (first - 2)
    average += 3 / 4 * (second - average)  # the decay is 2/11 after step 1 and 3/12 after step 2
    assert task.validated[0]["weight"] == pytest.approx(average)
    assert task.modules["net"].weight.item() < task.validated[-1]["weight"]


def test_the_export_holds_the_averages(tmp_path: Path) -> None:
    task, _, _ = run(tmp_path, ema_decay=0.9, learning_rate=0.1)
    exported = load_file(tmp_path / "export" / "net.safetensors")["weight"].item()
    assert exported == pytest.approx(task.validated[-1]["weight"]) and exported > task.modules["net"].weight.item()


class Pairs(Plane, ContrastiveTask):
    """A contrastive task: every row's target is its neighbour's, over the whole batch."""

    def encode(self, batch: dict, context: StepContext) -> dict[str, Tensor]:
        self.seen.append({"micro": context.micro_step, "torch": torch.rand(()).item()})
        return {"y": self.modules["net"](batch["x"][:, None])[:, 0]}

    def loss_of(self, features: dict[str, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        y = features["y"]
        error = (y[:, None] - y[None]).square().mean() + 0.1 * self.modules["net"].bias.square().sum()
        return error, {"rows": torch.tensor(float(len(y)))}

    def loss(self, batch: dict, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss_of(self.encode(batch, context), context)


def test_a_contrastive_step_in_chunks_is_that_of_the_large_batch(tmp_path: Path) -> None:
    _, whole, log = run(tmp_path / "whole", Pairs(), steps=2, batch_size=6, max_grad_norm=0)
    task, parts, parts_log = run(tmp_path / "parts", Pairs(), steps=2, accumulate=2, max_grad_norm=0)
    for one, two in zip(whole, parts, strict=True):
        torch.testing.assert_close(one["gradient"], two["gradient"])
        assert one["gradient"][1].abs() > 1e-3  # of the bias: by the loss itself
    assert [line["loss"] for line in log] == pytest.approx([line["loss"] for line in parts_log])
    assert [line["rows"] for line in parts_log] == [6.0, 6.0]
    # Every chunk is run twice and draws the same.
    assert [seen["micro"] for seen in task.seen] == [0, 1, 0, 1] * 2
    draws = [seen["torch"] for seen in task.seen]
    assert draws[:2] == draws[2:4] and draws[4:6] == draws[6:] and len(set(draws)) == 4
