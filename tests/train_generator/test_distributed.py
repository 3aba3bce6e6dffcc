"""Stage 2 on two ranks over gloo: DistributedDataParallel, ZeRO-2 and ZeRO-3 train the same, and resume exactly."""

import json
import shutil
from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.stages import same_weights

STEPS, HALF, LIMIT = 4, 2, 3000
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
LAYOUTS = {
    "replicated": {},
    "zero-2": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero-3": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


def train(out: Path, logs: Path, words: list[str], environment: dict[str, str]) -> list[dict]:
    """Two ranks; returns the logged training steps."""
    status, output = run_ranks(logs, "-m", "train_generator", *words, f"out={out}", limit=LIMIT, **environment)
    assert status == 0, output
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def train_and_resume(arguments: list[str], root: Path, unet: str, layout: str) -> list[dict]:
    """The curve of a run that also resumes from its half to the same bits."""
    # Losses on pictures: each rank decodes and samples for its own rows, at their own noise levels. With ZeRO-3, as on
    # GPUs, as many rows in each step and at a stop that all ranks share; here there is but one stop.
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
        "loss.sampled_below=300",
        "trainer.precision=fp32",
        "trainer.ema_decay=null",
        f"adapter.unet={unet}",
    ]
    whole, broken = root / layout, root / f"{layout}-broken"
    curve = train(whole, root / f"{layout}-logs", words, LAYOUTS[layout])
    last = whole / "checkpoints" / f"step-{STEPS:08d}"
    run = json.loads((last / "state.json").read_text())["run"]
    assert (run["processes"], run["layout"]) == (2, layout)
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "export")
    shutil.rmtree(broken / "checkpoints" / last.name)
    train(broken, root / f"{layout}-again", words, LAYOUTS[layout])
    assert same_weights(whole / "export", broken / "export")
    return curve


@pytest.fixture(scope="module", params=["lora", "full"])
def replicated(request, arguments, tmp_path_factory) -> tuple[str, list[dict]]:
    """What is trained of the UNet, and the curve of DistributedDataParallel."""
    return request.param, train_and_resume(arguments, tmp_path_factory.mktemp("ddp"), request.param, "replicated")


@pytest.mark.slow
@pytest.mark.timeout(9000)  # ZeRO-3 gathers every layer over gloo
@pytest.mark.parametrize("layout", ["zero-2", "zero-3"])
def test_two_ranks_train_the_same_in_all_layouts_and_resume_exactly(arguments, replicated, tmp_path, layout):
    unet, expected = replicated
    curve = train_and_resume(arguments, tmp_path, unet, layout)
    assert [line["step"] for line in expected] == list(range(1, STEPS + 1))
    names = [name for name in expected[0] if name.startswith("loss") or name == "grad_norm"]
    assert any(line["loss_identity"] > 0 for line in expected)
    assert any(line["loss_sampled_identity"] > 0 for line in expected)
    differences = {
        (ours["step"], name): abs(ours[name] - theirs[name]) / max(abs(ours[name]), 1e-3)
        for ours, theirs in zip(expected, curve, strict=True)
        for name in names
    }
    worst = max(differences, key=differences.get)
    print(f"largest relative difference from the replicated layout: {differences[worst]:.1e} {worst}")
    assert differences[worst] <= 1e-5
