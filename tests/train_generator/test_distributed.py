"""Stage 2 on two ranks over gloo: DistributedDataParallel and ZeRO-2 train the same, and both resume exactly."""

import json
import shutil
from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.stages import same_weights

STEPS, HALF = 6, 3
ZERO_2 = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}


def train(out: Path, logs: Path, words: list[str], environment: dict[str, str]) -> list[dict]:
    """Two ranks; returns the logged training steps."""
    status, output = run_ranks(logs, "-m", "train_generator", *words, f"out={out}", **environment)
    assert status == 0, output
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_train_the_same_in_both_layouts_and_resume_exactly(arguments, tmp_path):
    # Losses on pictures: each rank decodes and samples for its own rows, at their own noise levels.
    words = [
        *arguments,
        "trainer.batch_size=2",
        f"trainer.steps={STEPS}",
        f"trainer.save_every={HALF}",
        "trainer.log_every=1",
        "loss.identity=0.1",
        "loss.identity_below=900",
        "loss.sampled_identity=0.2",
        "loss.sampled_rows=1",
        "loss.sampled_steps=2",
    ]
    curves = {}
    for layout, environment in (("replicated", {}), ("zero-2", ZERO_2)):
        whole, broken = tmp_path / layout, tmp_path / f"{layout}-broken"
        curves[layout] = train(whole, tmp_path / f"{layout}-logs", words, environment)
        last = whole / "checkpoints" / f"step-{STEPS:08d}"
        run = json.loads((last / "state.json").read_text())["run"]
        assert (run["processes"], run["layout"]) == (2, layout)
        shutil.copytree(whole, broken)
        shutil.rmtree(broken / "export")
        shutil.rmtree(broken / "checkpoints" / last.name)
        train(broken, tmp_path / f"{layout}-again", words, environment)
        assert same_weights(whole / "export", broken / "export")
    assert [line["step"] for line in curves["replicated"]] == list(range(1, STEPS + 1))
    names = [name for name in curves["replicated"][0] if name.startswith("loss") or name == "grad_norm"]
    assert any(line["loss_identity"] > 0 for line in curves["replicated"])
    assert any(line["loss_sampled_identity"] > 0 for line in curves["replicated"])
    differences = {
        (ours["step"], name): abs(ours[name] - theirs[name]) / max(abs(ours[name]), 1e-3)
        for ours, theirs in zip(*curves.values(), strict=True)
        for name in names
    }
    worst = max(differences, key=differences.get)
    print(f"largest relative difference between the layouts: {differences[worst]:.1e} {worst}")
    assert differences[worst] <= 1e-5
