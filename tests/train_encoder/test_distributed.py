"""Stage 1 in chunks, on two ranks and under DeepSpeed is stage 1 on one large batch: same losses, same gradients.

Two ranks run as two processes over gloo. Curves are compared in float32 with a relative tolerance of 1e-5; every
test prints the largest difference (`pytest -rP` shows it). The gradient's norm is part of the curve, so a gradient that
misses something (the gallery side of another rank's queries, a loss parameter counted twice) fails in the first step.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.linalg import vector_norm as norm

from faceclip.encoder import FaceCLIP
from faceclip.errors import CheckpointError
from faceclip.training import StepContext, parse_config
from faceclip.training.accumulation import accumulate_exactly
from faceclip.training.sampler import fetch
from tests.ranks import free_port, run_launcher, run_ranks
from tests.stages import SMALL_ENCODER, same_weights, save_towers
from train_encoder.__main__ import train
from train_encoder.config import PRESETS, EncoderConfig
from train_encoder.features import load_features
from train_encoder.queries import QuerySource
from train_encoder.task import EncoderTask
from train_encoder.towers_io import load_towers

STEPS, HALF, PERSONS = 6, 3, 4
ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def arguments(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("distributed")
    towers = save_towers(root / "towers")
    trainer = [
        f"trainer.steps={STEPS}",
        f"trainer.save_every={HALF}",
        "trainer.log_every=1",
        "trainer.warmup_steps=2",
        "trainer.precision=fp32",
        "trainer.num_threads=1",
        "trainer.validate_every=0",
        "trainer.best_metric=null",
        "validation_queries=8",
        "trainer.ema_decay=0.9",
    ]
    return [f"data={tiny_dataset}", f"cache={root / 'cache'}", *towers, *SMALL_ENCODER, *trainer]


@pytest.fixture(scope="module")
def one_batch(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The curve of one rank and one chunk."""
    return run_here(tmp_path_factory.mktemp("one_batch"), arguments, f"trainer.batch_size={PERSONS}")


def run_here(out: Path, *words: list[str] | str) -> list[dict]:
    """Stage 1 in this process; returns its curve."""
    flat = [word for part in words for word in ([part] if isinstance(part, str) else part)]
    train(parse_config(EncoderConfig, [*flat, f"out={out}"], presets=PRESETS))
    return curve(out)


def curve(out: Path) -> list[dict]:
    """Logged training values by step."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def assert_same_curve(found: list[dict], expected: list[dict], *, rtol: float = 1e-5) -> None:
    """Losses and gradient norm of every step; prints the largest relative difference."""
    assert [line["step"] for line in found] == [line["step"] for line in expected] == list(range(1, STEPS + 1))
    names = ["loss", "grad_norm", *(key for key in expected[0] if key.startswith("loss_"))]
    differences = {
        (line["step"], name): abs(mine[name] / line[name] - 1)
        for mine, line in zip(found, expected, strict=True)
        for name in names
    }
    step, name = max(differences, key=differences.get)
    print(f"largest relative difference from one large batch: {differences[step, name]:.1e} ({name}, step {step})")
    assert differences[step, name] <= rtol, (step, name)


def back_to_half(whole: Path, broken: Path) -> None:
    """Makes of a finished run what it was when its first checkpoint had been written."""
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "export")
    shutil.rmtree(broken / "checkpoints" / f"step-{STEPS:08d}")
    assert [path.name for path in (broken / "checkpoints").iterdir()] == [f"step-{HALF:08d}"]


def test_gradients_of_chunks_equal_those_of_the_large_batch(arguments):
    config = parse_config(EncoderConfig, arguments, presets=PRESETS)
    towers = load_towers(config.towers)
    features = load_features(config.data, "train", towers, config.cache_path)
    torch.manual_seed(0)
    model = FaceCLIP.from_components(
        towers.recognizer, towers.text_l, towers.text_g, fusion=vars(config.fusion), joint=vars(config.heads)
    )
    task = EncoderTask(model, towers.image, config.loss, features, 8)
    batch = fetch(QuerySource(features, config.sampling), [(person, 0) for person in range(8)], 0)
    context = StepContext(step=0, steps=1, micro_step=0, device=torch.device("cpu"), generator=torch.Generator())
    trained = {name: p for name, p in task.modules.named_parameters() if p.requires_grad}
    with torch.no_grad():  # some weights start at zero: move them, so that gradients reach everything
        for parameter in trained.values():
            parameter.add_(0.05 * torch.randn(parameter.shape))

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: p.grad.clone() for name, p in trained.items()}
        task.modules.zero_grad()
        return found

    loss, _ = task.loss(batch, context)
    loss.backward()
    expected = gradients()
    total = norm(torch.stack([norm(gradient) for gradient in expected.values()]))
    # A shift of all keys does not change a softmax: what their bias receives is rounding. In the last layer, of which
    # only the text side is computed, the faces' queries are keys.
    unseen = {name for name in trained if name.endswith((".text.key.bias", ".layers.1.cross.face_query.bias"))}
    seen = trained.keys() - unseen
    assert len(unseen) == 6 and all(norm(expected[name]) > 1e-8 * total for name in seen)
    for size in (4, 3):
        chunks = [{name: value[start : start + size] for name, value in batch.items()} for start in range(0, 8, size)]
        value = accumulate_exactly(
            lambda chunk: task.encode(chunk, context), chunks, lambda features: task.loss_of(features, context)[0]
        )
        assert value.item() == pytest.approx(loss.item(), rel=1e-6)
        found = gradients()
        differences = {name: (norm(found[name] - expected[name]) / norm(expected[name])).item() for name in seen}
        worst = max(differences, key=differences.get)
        print(f"largest relative difference of a gradient in chunks of {size}: {differences[worst]:.1e} ({worst})")
        assert differences[worst] <= 1e-5, worst
        assert all(norm(found[name]) <= 1e-9 * total for name in unseen)
    assert {"scales.joint_log_scale", "scales.joint_bias"} <= trained.keys()


def test_chunks_give_the_curve_of_the_large_batch_and_resume_exactly(arguments, one_batch, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    chunks = ["trainer.batch_size=1", f"trainer.accumulate={PERSONS}"]
    assert_same_curve(run_here(whole, arguments, chunks), one_batch)
    back_to_half(whole, broken)
    run_here(broken, arguments, chunks)
    assert same_weights(whole / "export", broken / "export")


def two_ranks(
    tmp_path: Path,
    arguments: list[str],
    one_batch: list[dict],
    layout: str,
    *,
    start: Callable = run_ranks,
    **environment: str,
) -> Path:
    """Whole run and continued half on two ranks; checks the curve and that both end in the same bits."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, output = start(tmp_path / "first", "-m", "train_encoder", *arguments, f"out={whole}", **environment)
    assert status == 0, output
    facts = json.loads((whole / "checkpoints" / f"step-{STEPS:08d}" / "state.json").read_text())
    assert (facts["run"]["processes"], facts["run"]["layout"]) == (2, layout)
    assert_same_curve(curve(whole), one_batch)
    back_to_half(whole, broken)
    status, output = start(tmp_path / "again", "-m", "train_encoder", *arguments, f"out={broken}", **environment)
    assert status == 0, output
    assert f" {HALF + 1}/{STEPS} " in output and f" {HALF}/{STEPS} " not in output  # it did go on from the half
    assert same_weights(whole / "export", broken / "export")
    return whole


def launch(file: str, directory: Path, *command: str, **environment: str) -> tuple[int, str]:
    """`accelerate launch` of a command on two processes with one of the shipped files."""
    shipped = str(PRESETS / "launch" / file)
    return run_launcher(
        directory,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        shipped,
        "--num_processes",
        "2",
        "--main_process_port",
        str(free_port()),
        *command,
        **environment,
    )


def test_two_ranks_give_the_curve_of_one_and_resume_exactly(arguments, one_batch, tmp_path):
    words = [*arguments, f"trainer.batch_size={PERSONS // 2}"]
    whole = two_ranks(tmp_path, words, one_batch, "replicated")
    with pytest.raises(CheckpointError, match=r"\bprocesses .*\b2, .*\b1\b"):
        run_here(whole, words)


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_zero_2_gives_the_curve_and_resumes_exactly(arguments, one_batch, tmp_path, accumulate):
    words = [*arguments, f"trainer.batch_size={PERSONS // 2 // accumulate}", f"trainer.accumulate={accumulate}"]
    two_ranks(tmp_path, words, one_batch, "zero-2", ACCELERATE_DEEPSPEED_ZERO_STAGE="2", **ZERO)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # ZeRO-3 gathers every layer over gloo: half a minute on idle cores, many on busy ones
@pytest.mark.parametrize("accumulate", [1, 2])
def test_zero_3_gives_the_curve_and_resumes_exactly(arguments, one_batch, tmp_path, accumulate):
    words = [
        *arguments,
        f"trainer.batch_size={PERSONS // 2 // accumulate}",
        f"trainer.accumulate={accumulate}",
        "trainer.ema_decay=null",
        "trainer.validate_every=2",
    ]
    two_ranks(tmp_path, words, one_batch, "zero-3", ACCELERATE_DEEPSPEED_ZERO_STAGE="3", **ZERO)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_zero_3_on_cached_states_of_the_text_towers(arguments, tmp_path, accumulate):
    """Hardly a weight is kept whole: as at full size, validation needs those of towers that never ran."""
    run_here(tmp_path / "begin", arguments, f"trainer.batch_size={PERSONS}")
    given = [word for word in arguments if not word.startswith(("towers.", "fusion.", "heads."))]
    words = [
        *given,
        f"init={tmp_path / 'begin' / 'export'}",
        "train_identity=false",
        "cached_text=true",
        "trainer.ema_decay=null",
        "trainer.validate_every=2",
    ]
    one_rank = run_here(tmp_path / "one", words, f"trainer.batch_size={PERSONS}")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 100}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero, "zero_allow_untested_optimizer": True}))
    whole = two_ranks(
        tmp_path,
        [*words, f"trainer.batch_size={PERSONS // 2 // accumulate}", f"trainer.accumulate={accumulate}"],
        one_rank,
        "zero-3",
        ACCELERATE_DEEPSPEED_CONFIG_FILE=str(tmp_path / "zero.json"),
        **ZERO,
    )
    figures = [
        [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if "validation" in line]
        for run in (whole, tmp_path / "one")
    ]
    assert len(figures[0]) == len(figures[1]) == 3
    for found, expected in zip(*figures, strict=True):  # shares of 8 queries
        names = [name for name in expected if name.startswith(("composed", "face"))]
        assert len(names) == 6 and [found[name] for name in names] == pytest.approx([expected[name] for name in names])


@pytest.mark.slow
def test_two_ranks_in_chunks(arguments, one_batch, tmp_path):
    words = [*arguments, f"trainer.batch_size={PERSONS // 4}", "trainer.accumulate=2"]
    two_ranks(tmp_path, words, one_batch, "replicated")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("file", "layout", "environment"),
    [
        ("ddp.yaml", "replicated", {}),
        ("zero2.yaml", "zero-2", {"DS_ACCELERATOR": "cpu"}),
        ("zero3.yaml", "zero-3", {"DS_ACCELERATOR": "cpu"}),
    ],
)
def test_the_shipped_launch_files_give_the_curve_and_resume_exactly(
    arguments, one_batch, tmp_path, file, layout, environment
):
    words = [*arguments, f"trainer.batch_size={PERSONS // 2}", "trainer.ema_decay=null"]
    two_ranks(tmp_path, words, one_batch, layout, start=partial(launch, file), **environment)


def test_bf16_stays_near_fp32(arguments, one_batch, tmp_path):
    found = run_here(tmp_path, arguments, f"trainer.batch_size={PERSONS}", "trainer.precision=bf16")
    assert any(mine["loss"] != theirs["loss"] for mine, theirs in zip(found, one_batch, strict=True))
    # Only the first steps: rounding sends the weights on paths of their own.
    for mine, theirs in zip(found[:2], one_batch[:2], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=0.03)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # compiling: minutes on busy cores
@pytest.mark.parametrize("accumulate", [1, 2])
def test_compiled_steps_give_the_same_curve(arguments, one_batch, tmp_path, accumulate):
    torch._dynamo.reset()
    words = [f"trainer.batch_size={PERSONS // accumulate}", f"trainer.accumulate={accumulate}", "trainer.compile=true"]
    assert_same_curve(run_here(tmp_path, arguments, words), one_batch, rtol=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
