"""Validation comes after saving: what it needs, and that a failure of it loses nothing."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from faceclip.errors import ConfigError
from faceclip.training import Trainer
from faceclip.training.checkpoints import load_checkpoint
from tests.faceclip.training.test_trainer import Line, Numbers, config, weights


def scoring(task: Line, *, fail_at: int | None = None) -> Line:
    """The task with a score that is best at step 10; its validation may fail."""

    def validate(step: int) -> dict[str, float]:
        if step == fail_at:
            raise ValueError("no figures today")
        return {"score": -abs(step - 10.0)}

    task.validate = validate
    return task


def validations(directory: Path) -> list[int]:
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["kind"] == "validation"]


@pytest.mark.parametrize("fail_at", [10, 20])  # between two checkpoints, and after the last step
def test_a_failing_validation_loses_nothing(tmp_path: Path, fail_at: int) -> None:
    settings = config(validate_every=5, best_metric="score", save_every=4)
    Trainer(settings, scoring(Line()), Numbers(), tmp_path / "whole").fit()
    with pytest.raises(ValueError, match="no figures today"):
        Trainer(settings, scoring(Line(), fail_at=fail_at), Numbers(), tmp_path / "broken").fit()
    newest = tmp_path / "broken" / "checkpoints" / f"step-{fail_at:08d}"
    assert load_checkpoint(newest)[1]["validated"] is False
    result = Trainer(settings, scoring(Line()), Numbers(), tmp_path / "broken").fit()
    assert result.step == 20 and result.metrics == {"score": -10.0}
    for folder in ("export", "best"):
        whole, broken = (load_file(tmp_path / run / folder / "net.safetensors") for run in ("whole", "broken"))
        assert all(torch.equal(whole[name], broken[name]) for name in whole)
    assert validations(tmp_path / "broken") == validations(tmp_path / "whole") == [5, 10, 15, 20]


def test_a_stopped_run_validates_when_it_resumes(tmp_path: Path) -> None:
    task = scoring(Line())
    inner = task.loss

    def loss(batch: dict, context) -> tuple:
        if context.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return inner(batch, context)

    task.loss = loss
    settings = config(validate_every=5, best_metric="score", save_every=0)
    with pytest.raises(SystemExit):
        Trainer(settings, task, Numbers(), tmp_path).fit()
    assert validations(tmp_path) == [5]
    task.loss = inner
    Trainer(settings, task, Numbers(), tmp_path).fit()
    assert validations(tmp_path) == [5, 10, 15, 20]


def test_the_best_figure_is_known_after_resuming_where_it_was_measured(tmp_path: Path) -> None:
    settings = {"validate_every": 5, "best_metric": "score", "save_every": 5}
    Trainer(config(steps=10, **settings), scoring(Line()), Numbers(), tmp_path).fit()
    best = load_file(tmp_path / "best" / "net.safetensors")
    Trainer(config(**settings), scoring(Line()), Numbers(), tmp_path).fit()
    assert torch.equal(load_file(tmp_path / "best" / "net.safetensors")["0.weight"], best["0.weight"])
    assert not torch.equal(weights(tmp_path)["0.weight"], best["0.weight"])


def test_a_figure_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    task = scoring(Line())
    score = task.validate
    task.validate = lambda step: score(step) if step > 5 else {"score": float("nan")}
    Trainer(config(validate_every=5, best_metric="score"), task, Numbers(), tmp_path / "nan").fit()
    Trainer(config(validate_every=5, best_metric="score"), scoring(Line()), Numbers(), tmp_path / "plain").fit()
    found, wanted = (load_file(tmp_path / run / "best" / "net.safetensors") for run in ("nan", "plain"))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_unknown_metric_is_refused_at_the_start_or_corrected_afterwards(tmp_path: Path) -> None:
    telling = scoring(Line())
    telling.figures = lambda: ("score",)
    with pytest.raises(ConfigError, match=r"^trainer\.best_metric: scroe .*\bscore\b"):
        Trainer(config(best_metric="scroe"), telling, Numbers(), tmp_path)
    with pytest.raises(ConfigError, match=r"^trainer\.best_metric: scroe .*\bscore\b"):
        Trainer(config(best_metric="scroe"), scoring(Line()), Numbers(), tmp_path).fit()
    assert not (tmp_path / "export").exists()
    Trainer(config(best_metric="score"), scoring(Line()), Numbers(), tmp_path).fit()
    assert (tmp_path / "best").exists() and torch.equal(
        weights(tmp_path)["0.weight"], load_file(tmp_path / "best" / "net.safetensors")["0.weight"]
    )
