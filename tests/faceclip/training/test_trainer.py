"""The loop on a real (tiny) regression: exact resume after SIGKILL, SIGTERM and Ctrl-C, finite check, frozen parts."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from faceclip.errors import CheckpointError, ConfigError, NonFiniteLossError
from faceclip.training import MapSource, StepContext, Task, Trainer, TrainerConfig
from faceclip.training.stopping import SAME
from tests.warm import Process


class Numbers(MapSource):
    """32 samples of a noisy line; the noise comes from the sample's generator."""

    def __len__(self) -> int:
        return 32

    def get(self, index: int, rng: np.random.Generator) -> dict:
        x = np.float32(index / 32)
        return {"x": x, "y": np.float32(3 * x - 1 + 0.1 * rng.standard_normal())}


class Line(Task):
    """Fits the line through a network with dropout and batch statistics, so that random state and buffers
    matter.
    """

    def __init__(self, *, poison_at: int | None = None, die_at: int | None = None) -> None:
        torch.manual_seed(0)
        net = [nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1)]
        self.modules = nn.ModuleDict({"net": nn.Sequential(*net), "frozen": nn.Sequential(nn.Linear(1, 1))})
        self.modules["frozen"].requires_grad_(False)
        self.poison_at, self.die_at = poison_at, die_at

    def loss(self, batch: dict, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.modules["net"].training and not self.modules["frozen"].training
        if context.step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        noise = torch.randn((), generator=context.generator)
        error = (self.modules["net"](batch["x"][:, None])[:, 0] - batch["y"] + 0.01 * noise).square().mean()
        if context.step == self.poison_at:
            error = error * float("nan")
        return error, {"square": error.detach()}

    def validate(self, step: int) -> dict[str, float]:
        torch.rand(3)  # must not disturb training
        return {"weight": self.modules["net"][0].weight.abs().sum().item()}

    def export(self, directory: Path) -> None:
        save_file({k: v.clone() for k, v in self.modules["net"].state_dict().items()}, directory / "net.safetensors")


def config(**changes) -> TrainerConfig:
    base = {
        "steps": 20,
        "batch_size": 6,
        "log_every": 5,
        "save_every": 4,
        "device": "cpu",
        "warmup_steps": 3,
        "num_threads": 1,
    }
    return TrainerConfig(**(base | {"ema_decay": 0.9, "accumulate": 2} | changes))


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "export" / "net.safetensors")


def test_resume_after_sigkill_is_bit_exact(tmp_path: Path) -> None:
    Trainer(config(), Line(), Numbers(), tmp_path / "whole").fit()
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_trainer import Line, Numbers, Trainer, config
        Trainer(config(), Line(die_at=10), Numbers(), Path({str(tmp_path / "broken")!r})).fit()
    """
    killed = Process(["-c", textwrap.dedent(script)], dict(os.environ))
    assert killed.wait(timeout=120) == -signal.SIGKILL
    assert not (tmp_path / "broken" / "export").exists()
    assert Trainer(config(), Line(), Numbers(), tmp_path / "broken").fit().step == 20
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    lines = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [
        5,
        10,
        15,
        20,
    ]  # the lines of lost steps are replaced, not doubled


def test_validation_does_not_change_training(tmp_path: Path) -> None:
    Trainer(config(), Line(), Numbers(), tmp_path / "a").fit()
    Trainer(config(validate_every=3), Line(), Numbers(), tmp_path / "b").fit()
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits(tmp_path: Path, capfd: pytest.CaptureFixture, number: int, status: int) -> None:
    task = Line()
    inner = task.loss

    def loss(batch: dict, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        if context.step == 6:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as a launcher passes on what the terminal sends to all
        return inner(batch, context)

    task.loss = loss
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as raised:
        Trainer(config(save_every=0), task, Numbers(), tmp_path).fit()
    assert raised.value.code == status
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000007"]
    assert capfd.readouterr().out.splitlines()[-1] == f"{tmp_path}: saved at step 7; the same command resumes"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert Trainer(config(save_every=0), Line(), Numbers(), tmp_path).fit().step == 20


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    script = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_trainer import Line, Numbers, Trainer, config
        task = Line()
        task.loss = lambda batch, context: (print("here", flush=True), time.sleep(100))
        Trainer(config(), task, Numbers(), Path({str(tmp_path)!r})).fit()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopping after this step; Ctrl-C again stops at once, without saving\n"
    time.sleep(SAME + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in errors
    assert not list(tmp_path.glob("checkpoints/*"))


def test_nan_stops_before_the_weights_are_touched(tmp_path: Path) -> None:
    task = Line(poison_at=9)
    with pytest.raises(NonFiniteLossError, match="step 9"):
        Trainer(config(), task, Numbers(), tmp_path).fit()
    assert all(torch.isfinite(p).all() for p in task.modules.parameters())
    assert sorted(f.name for f in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]


def test_resume_with_another_batch_size_is_refused(tmp_path: Path) -> None:
    Trainer(config(steps=4), Line(), Numbers(), tmp_path).fit()
    with pytest.raises(CheckpointError, match=r"\bbatch_size .*\b6, .*\b8\b"):
        Trainer(config(batch_size=8), Line(), Numbers(), tmp_path).fit()


def test_resume_on_other_frozen_parts_is_refused(tmp_path: Path) -> None:
    Trainer(config(steps=4), Line(), Numbers(), tmp_path / "old").fit()
    task = Line()
    task.facts = lambda: {"encoder": "aa"}
    # Checkpoints that do not tell a fact are taken: nothing says that it was another one.
    assert Trainer(config(steps=8), task, Numbers(), tmp_path / "old", facts={"data": "11"}).fit().step == 8
    before = weights(tmp_path / "old")
    task.facts = lambda: {"encoder": "bb"}
    with pytest.raises(CheckpointError, match=r"\(encoder .*\baa, .*\bbb\)"):
        Trainer(config(steps=8), task, Numbers(), tmp_path / "old", facts={"data": "11"}).fit()
    task.facts = lambda: {"encoder": "aa"}
    with pytest.raises(CheckpointError, match=r"\(data .*\b11, .*\b22\)"):
        Trainer(config(steps=12), task, Numbers(), tmp_path / "old", facts={"data": "22"}).fit()
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "old").items())
    assert Trainer(config(steps=12), task, Numbers(), tmp_path / "old", facts={"data": "11"}).fit().step == 12


def test_best_export_is_kept(tmp_path: Path) -> None:
    task = Line()
    task.validate = lambda step: {"score": -abs(step - 10.0)}
    result = Trainer(config(validate_every=5, best_metric="score"), task, Numbers(), tmp_path).fit()
    assert result.metrics == {"score": -10.0}
    best = load_file(tmp_path / "best" / "net.safetensors")
    assert not torch.equal(best["0.weight"], weights(tmp_path)["0.weight"])


def test_nothing_to_train(tmp_path: Path) -> None:
    task = Line()
    task.modules.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"^task\.modules: "):
        Trainer(config(), task, Numbers(), tmp_path)
