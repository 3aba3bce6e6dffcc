"""The trainer on two ranks, and under DeepSpeed, over gloo."""

import json
from pathlib import Path

import pytest
import torch

from faceclip.errors import CheckpointError
from faceclip.training import Trainer
from tests.faceclip.training.test_trainer import Line, Numbers, config, weights
from tests.ranks import run_ranks

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
import torch
sys.path.insert(0, FOLDER)
from faceclip.training import Trainer, trainer
from test_trainer import Line, Numbers, config

out = Path(sys.argv[1])


write = trainer.save_checkpoint


def slowly(*arguments, **options):  # a large state
    time.sleep(3)
    return write(*arguments, **options)


trainer.save_checkpoint = slowly
task, main = Line(), os.environ["RANK"] == "0"
if sys.argv[2] == "stop":
    inner = task.loss

    def loss(batch, context):
        if main and context.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        if context.micro_step == 0:
            draws = [torch.rand(()).item(), torch.rand((), generator=context.generator).item()]
            (out / f"draws-{os.environ['RANK']}-{context.step}.json").write_text(json.dumps(draws))
        return inner(batch, context)

    task.loss = loss
    try:
        Trainer(config(save_every=0), task, Numbers(), out).fit()
    except SystemExit as leaving:
        seen = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
        (out / f"left-{os.environ['RANK']}.txt").write_text(f"{leaving.code} {seen}")
else:
    steps = int(sys.argv[3])
    Trainer(config(steps=steps, schedule="constant", ema_decay=None), task, Numbers(), out).fit()
""".replace("FOLDER", repr(str(Path(__file__).parent)))


def test_no_rank_leaves_before_the_checkpoint_is_written_and_each_draws_for_itself(tmp_path: Path) -> None:
    status, output = run_ranks(tmp_path / "ranks", "-c", SCRIPT, str(tmp_path), "stop")
    assert status == 0, output
    assert [(tmp_path / f"left-{rank}.txt").read_text() for rank in (0, 1)] == ["143 ['step-00000003']"] * 2
    # Each rank draws for itself, in every step anew.
    files = [tmp_path / f"draws-{rank}-{step}.json" for rank in (0, 1) for step in (0, 1, 2)]
    draws = [draw for file in files for draw in json.loads(file.read_text())]
    assert len(set(draws)) == 12

    # One rank goes on where two stood, if each of its steps takes as many batches as both took together.
    before = config()
    with pytest.raises(CheckpointError, match=f"processes was 2, now 1.*trainer.accumulate.*{2 * before.accumulate}"):
        Trainer(config(save_every=0), Line(), Numbers(), tmp_path).fit()
    alone = Trainer(config(save_every=0, accumulate=2 * before.accumulate), Line(), Numbers(), tmp_path)
    assert alone.fit().step == before.steps


def test_batch_sizes_of_a_deepspeed_file_are_replaced(tmp_path: Path) -> None:
    settings = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 32,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 2},
    }
    (tmp_path / "deepspeed.json").write_text(json.dumps(settings))
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "deepspeed.json"),
    }
    status, output = run_ranks(tmp_path / "ranks", "-c", SCRIPT, str(tmp_path), "train", "2", ranks=1, **environment)
    assert status == 0, output
    facts = json.loads((tmp_path / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert facts["run"]["layout"] == "zero-2"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_with_an_offloaded_optimizer_a_run_resumes_exactly(tmp_path: Path, stage: int) -> None:
    zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
    settings = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    (tmp_path / "deepspeed.json").write_text(json.dumps(settings | {"zero_optimization": zero}))
    environment = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "DS_ACCELERATOR": "cpu",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "deepspeed.json"),
    }
    for number, (name, steps) in enumerate((("whole", 8), ("broken", 4), ("broken", 8))):
        words = ["-c", SCRIPT, str(tmp_path / name), "train", str(steps)]
        status, output = run_ranks(tmp_path / f"ranks-{number}", *words, **environment)
        assert status == 0, output
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
