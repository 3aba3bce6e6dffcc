"""The benchmark's step computes from pictures and texts what the cached step reads, and both train."""

import sys
from pathlib import Path

import pytest
import torch

from faceclip.cpu import matmul as cpu_matmul
from train_encoder.queries import TEXT_ONLY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import encoder_step
    finally:
        sys.path.remove(str(BENCHMARKS))
    return encoder_step


@pytest.fixture(scope="module")
def parts(benchmark, tiny_dataset, tmp_path_factory):
    config = benchmark.configuration(
        "shipped", tiny_dataset, persons=4, images=2, precision="fp32", device="cpu", frozen_identity=False
    )
    config.cache = str(tmp_path_factory.mktemp("cache"))
    model, towers = benchmark.parts("shipped", config)
    features = benchmark.load_features(config.data, "train", towers, config.cache_path)
    return config, model, towers, features


def test_computed_batches_equal_cached_ones(benchmark, parts):
    config, _, towers, features = parts
    config.sampling.text_only = 0.5
    cached = benchmark.Cached(features, config, None)
    computed = benchmark.Computed(features, config, towers, None, torch.device("cpu"))
    seen = 0
    for position in range(3):
        expected, read = cached.read(position), computed.read(position)
        assert len(read["crops"]) < 2 * expected["mode"].numel()  # each crop once, none for a text alone
        found = computed.features(read)
        assert found.keys() == expected.keys()
        shown = expected["mode"] != TEXT_ONLY
        seen += int((~shown).sum())
        for name, value in expected.items():
            chosen = shown if name in ("face_tokens", "face_identity") else torch.ones_like(shown)
            torch.testing.assert_close(found[name][chosen].to(value.dtype), value[chosen], atol=2e-3, rtol=2e-3)
    assert seen  # some queries had no face


@pytest.mark.parametrize("frozen", [False, True])
def test_both_ways_make_the_same_steps(benchmark, parts, frozen):
    config, model, towers, features = parts
    weight = model.heads.face_pool.key_value.weight
    states = (
        benchmark.text_states_of(model.eval(), features, config.sampling, config.data, config.cache_path)
        if frozen
        else None
    )
    ways = (
        benchmark.Computed(features, config, towers, states, torch.device("cpu")),
        benchmark.Cached(features, config, states),
    )
    start, ends = {name: value.clone() for name, value in model.state_dict().items()}, []
    for way in ways:
        model.load_state_dict(start)
        task = benchmark.EncoderTask(model, towers.image, config.loss, features, 1, train_identity=not frozen)
        train = benchmark.TrainingStep(task, config, cpu=True)
        with benchmark.steps(train, way) as next_step:
            next_step()
            next_step()
        ends.append(weight.detach() - start["heads.face_pool.key_value.weight"])
    assert ends[1].norm() > 0
    assert (ends[0] - ends[1]).norm() < 0.05 * ends[1].norm()


def test_plain_products_leave_onednn_alone(benchmark, monkeypatch):
    monkeypatch.setattr(cpu_matmul, "has_onednn", lambda: True)  # put back after the test
    assert "oneDNN products on" in benchmark.describe(torch.device("cpu"))
    sys.modules["timing"].use_plain_products()
    assert not cpu_matmul.uses_onednn(torch.ones(2, 2))
    assert "oneDNN products off" in benchmark.describe(torch.device("cpu"))
