"""The number of ranks changes at a checkpoint: every step goes on taking the samples that it would have taken."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from faceclip.training import StepContext, Trainer
from tests.faceclip.training.test_trainer import Line, Numbers, config, weights
from tests.ranks import run_ranks

STEPS = {"one rank": 4, "two ranks": 9, "one again": 14}  # at the end of each part; an epoch is 2.7 steps
SCRIPT = f"""
import json, os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_elastic import Noted, Plain, settings
from faceclip.training import Trainer

source = Noted()
Trainer(settings(int(sys.argv[2]), accumulate=1), Plain(), source, Path(sys.argv[1])).fit()
(Path(sys.argv[1]) / f"seen-{{os.environ['RANK']}}.json").write_text(json.dumps(source.seen))
"""


class Noted(Numbers):
    """Notes the samples in the order in which they are read: index, and what was drawn for it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def get(self, index: int, rng: np.random.Generator) -> dict:
        sample = super().get(index, rng)
        self.seen.append((index, float(sample["y"])))
        return sample


class Plain(Line):
    """Without draws of its own, which would be those of a rank, and without statistics of a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.modules["net"] = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(self, batch: dict, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.modules["net"](batch["x"][:, None])[:, 0] - batch["y"]).square().mean()
        return error, {}

    def validate(self, step: int) -> dict[str, float]:
        return {}


def settings(steps: int, **changes):
    """As many samples in a step on one rank as on two with `accumulate=1`."""
    return config(steps=steps, save_every=0, schedule="constant", **changes)


def in_turn(by_rank: list[list], batch: int) -> list:
    """The samples of a chunk are those of rank 0, then those of rank 1."""
    chunks = range(0, len(by_rank[0]), batch)
    return [tuple(sample) for start in chunks for seen in by_rank for sample in seen[start : start + batch]]


def test_one_rank_two_ranks_and_one_again_take_the_samples_of_an_unbroken_run(tmp_path: Path) -> None:
    whole, ends = Noted(), list(STEPS.values())
    Trainer(settings(ends[-1]), Plain(), whole, tmp_path / "whole").fit()
    out, found = tmp_path / "elastic", []
    for steps, ranks in zip(ends, (1, 2, 1), strict=True):
        if ranks == 1:
            source = Noted()
            Trainer(settings(steps), Plain(), source, out).fit()
            found += source.seen
            continue
        status, output = run_ranks(tmp_path / "ranks", "-c", SCRIPT, str(out), str(steps))
        assert status == 0, output
        found += in_turn([json.loads((out / f"seen-{rank}.json").read_text()) for rank in (0, 1)], config().batch_size)
    assert found == whole.seen and len(found) == 2 * 6 * ends[-1]
    # The sums of a step are those of other halves, so that weights agree but for rounding.
    expected = weights(tmp_path / "whole")
    for name, value in weights(out).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
