"""The demo's orchestration with small commands instead of trainings: order, resuming, failures, time left."""

import json
import sys

import pytest
from rich.console import Console

from eval.demo import __main__ as demo
from eval.demo.curves import read_log
from eval.demo.stages import DemoConfig, Stage, last_log_line, make_stages, remaining_seconds


def stage(name: str, code: str, expected: float = 10.0) -> Stage:
    command = [sys.executable, "-c", code]
    return Stage(name=name, title=name, command=command, expected=expected, progress=lambda: None)


def run(monkeypatch, root, stages):
    monkeypatch.setattr(demo, "make_stages", lambda *_: stages)
    return demo.run_demo(root, DemoConfig(), Console(quiet=True))


def append(path, word: str) -> str:
    return f"open({str(path)!r}, 'a').write({word!r})"


def test_finished_stages_are_skipped_and_changed_ones_run_again_with_all_after_them(monkeypatch, tmp_path):
    trace = tmp_path / "trace"
    stages = [stage(name, append(trace, name)) for name in "abc"]
    run(monkeypatch, tmp_path / "run", stages)
    run(monkeypatch, tmp_path / "run", stages)
    assert trace.read_text() == "abc"
    stages[1] = stage("b", append(trace, "B"))
    run(monkeypatch, tmp_path / "run", stages)
    assert trace.read_text() == "abcBc"


def test_failed_stage_shows_the_end_of_its_log_and_is_repeated(monkeypatch, tmp_path):
    trace = tmp_path / "trace"
    broken = [stage("a", append(trace, "a")), stage("b", "print('the reason'); raise SystemExit(3)")]
    with pytest.raises(demo.StageFailedError, match=r"stage b ended with status 3(?s:.*)the reason"):
        run(monkeypatch, tmp_path / "run", broken)
    run(monkeypatch, tmp_path / "run", [broken[0], stage("b", append(trace, "b"))])
    assert trace.read_text() == "ab"


def test_time_left_by_hand():
    stages = [stage("a", "", 10), stage("b", "", 20), stage("c", "", 30)]
    # Nothing known: everything that is left of the expectations.
    assert remaining_seconds(stages, {}, stages[0], 4, None) == pytest.approx(6 + 20 + 30)
    # The first took twice as long: so will the others.
    assert remaining_seconds(stages, {"a": 20}, stages[1], 0, None) == pytest.approx(40 + 60)
    # Half of the second is done after 30 s: its own pace counts, 30 s more, then the third at pace 2.
    assert remaining_seconds(stages, {"a": 20}, stages[1], 30, 0.5) == pytest.approx(30 + 60)


def test_commands_are_the_documented_ones(tmp_path):
    stages = make_stages(tmp_path / "demo", DemoConfig())
    shown = [item.shown(tmp_path / "demo") for item in stages]
    modules = [words.split()[2] for words in shown]
    assert modules[:3] == ["faceclip.data.synthetic", "train_encoder", "train_generator"]
    assert modules[3:] == ["eval.retrieval", "eval.generation", "eval.demo.showcase"]
    assert not any(str(tmp_path) in words for words in shown)
    assert sum(item.expected for item in stages) < 15 * 60


def test_half_written_log_lines_are_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    assert last_log_line(path) is None and read_log(path) == {}
    lines = [{"step": 10, "kind": "train", "loss": 2.0}, {"step": 10, "kind": "validation", "x": 1.0}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 20, "ki')
    assert last_log_line(path) == lines[1]
    assert read_log(path) == {"loss": ([10], [2.0])}
