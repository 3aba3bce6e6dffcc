"""The demo's orchestration with small commands instead of trainings: order, resuming, failures, time left."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from eval.demo import __main__ as demo
from eval.demo.curves import read_log
from eval.demo.records import TIMES, ForeignFolderError, Records, shipped
from eval.demo.stages import DemoConfig, Stage, last_log_line, make_stages, remaining_seconds
from tests.full_disk import largest_file


def stage(name: str, code: str, expected: float = 10.0, outputs: tuple = ()) -> Stage:
    command = [sys.executable, "-c", code]
    return Stage(name=name, title=name, command=command, expected=expected, progress=lambda: None, outputs=outputs)


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


def test_a_changed_stage_and_all_after_it_start_in_empty_folders(monkeypatch, tmp_path):
    """As a training refuses a folder that another one began, each command here fails when its folder exists."""
    root, trace = tmp_path / "run", tmp_path / "trace"

    def make(**words: str) -> list[Stage]:
        return [
            stage(
                name,
                f"import os; os.mkdir({str(root / name)!r}); {append(trace, words.get(name, name))}",
                outputs=(root / name,),
            )
            for name in "abc"
        ]

    run(monkeypatch, root, make())
    run(monkeypatch, root, make(b="B"))
    assert trace.read_text() == "abcBc"
    monkeypatch.setattr(demo, "shipped", lambda: "another release")
    run(monkeypatch, root, make(b="B"))
    run(monkeypatch, root, make(b="B"))
    assert trace.read_text() == "abcBcaBc"


def test_an_interrupted_stage_keeps_its_folder_unless_its_command_changed(monkeypatch, tmp_path):
    root, trace = tmp_path / "run", tmp_path / "trace"
    folder = root / "a"
    code = (
        f"import os, sys; seen = os.path.exists({str(folder)!r}); os.makedirs({str(folder)!r}, exist_ok=True); "
        f"open({str(trace)!r}, 'a').write('again ' if seen else 'new ')"
    )
    for _ in range(2):
        with pytest.raises(demo.StageFailedError):
            run(monkeypatch, root, [stage("a", f"{code}; sys.exit(3)", outputs=(folder,))])
    run(monkeypatch, root, [stage("a", code, outputs=(folder,))])
    assert trace.read_text() == "new again new "


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"images_per_arm": 8}, ["generation", "report"]),
        ({"queries": 90}, ["retrieval", "generation", "report"]),
        ({"encoder_steps": 5}, ["encoder", "generator", "retrieval", "generation", "report"]),
        ({"identities": 421, "splits": (331, 30, 60)}, "all"),
        ({}, []),
    ],
)
def test_a_change_of_the_sizes_clears_later_stages(tmp_path, change, anew):
    root = tmp_path / "demo"
    stages = make_stages(root, DemoConfig())
    first = Records(root, stages, shipped())
    assert first.clear_stale() == []
    for item in stages:
        first.begin(item)
        for path in item.outputs:
            if path.suffix:
                path.touch()
            else:
                (path / "inner").mkdir(parents=True)
        first.finish(item, 1.0)
    names = [item.name for item in stages]
    anew = names if anew == "all" else anew
    again = Records(root, make_stages(root, DemoConfig(**change)), shipped())
    assert again.clear_stale() == anew and list(again.finished) == names[: len(names) - len(anew)]
    for item in stages:
        assert all(path.exists() == (item.name not in anew) for path in item.outputs), item.name
    stored = json.loads((root / TIMES).read_text())
    assert list(stored) == list(again.finished)
    assert all(entry["made_by"] == shipped() for entry in stored.values())


def test_an_older_release_or_other_weights_leave_nothing_finished(tmp_path):
    item = stage("a", "")
    records = Records(tmp_path, [item], "0.0.1 abc")
    records.begin(item)
    records.finish(item, 1.0)
    assert Records(tmp_path, [item], "0.0.1 abc").finished == {"a": 1.0}
    assert Records(tmp_path, [item], shipped()).finished == {}
    stored = json.loads((tmp_path / TIMES).read_text())
    del stored["a"]["made_by"]  # as written before it was noted
    (tmp_path / TIMES).write_text(json.dumps(stored))
    assert Records(tmp_path, [item], "0.0.1 abc").finished == {}


def test_seconds_of_an_interrupted_stage_are_marked(tmp_path):
    item = stage("a", "")
    Records(tmp_path, [item], "x").begin(item)  # and killed
    again = Records(tmp_path, [item], "x")
    again.begin(item)
    again.finish(item, 2.0)
    assert json.loads((tmp_path / TIMES).read_text())["a"]["resumed"] is True
    again.begin(other := stage("b", ""))
    assert again.entries[other.name]["resumed"] is False


def test_a_folder_of_somebody_else_is_not_cleared(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photo.png").touch()
    with pytest.raises(ForeignFolderError, match=r"/data .*/times\.json.*--out"):
        Records(tmp_path, make_stages(tmp_path, DemoConfig()), shipped()).clear_stale()
    assert (tmp_path / "data" / "photo.png").is_file() and not (tmp_path / TIMES).exists()


def test_failed_stage_shows_the_end_of_its_log_and_is_repeated(monkeypatch, tmp_path):
    trace = tmp_path / "trace"
    broken = [stage("a", append(trace, "a")), stage("b", "print('the reason'); raise SystemExit(3)")]
    with pytest.raises(demo.StageFailedError, match=r"stage b .*\b3; .*logs/b\.log(?s:.*)the reason"):
        run(monkeypatch, tmp_path / "run", broken)
    run(monkeypatch, tmp_path / "run", [broken[0], stage("b", append(trace, "b"))])
    assert trace.read_text() == "ab"


def test_notes_that_do_not_fit_on_the_disk_end_the_demo_with_the_remedy(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "make_stages", lambda *_: [stage("a", "pass")])
    with largest_file(64):
        assert demo.main(["--out", str(tmp_path)]) == 2
    assert f"cannot write {tmp_path / TIMES} " in (said := capsys.readouterr().err) and "free space" in said
    assert not (tmp_path / "logs" / "a.log").exists()
    (tmp_path / "logs").write_text("in the way")
    assert demo.main(["--out", str(tmp_path)]) == 2
    assert f"cannot write {tmp_path / 'logs' / 'a.log'} " in capsys.readouterr().err


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
    assert modules[:3] == ["faceclip.people", "train_encoder", "train_generator"]
    assert modules[3:] == ["eval.retrieval", "eval.arms", "eval.demo.showcase"]
    assert not any(str(tmp_path) in words for words in shown)
    assert sum(item.expected for item in stages) < 15 * 60
    relative = [item.shown(Path("demo")) for item in make_stages(Path("demo"), DemoConfig())]
    assert relative == shown  # a folder's name may be part of other words, such as eval.demo


def test_half_written_log_lines_are_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    assert last_log_line(path) is None and read_log(path) == {}
    lines = [{"step": 10, "kind": "train", "loss": 2.0}, {"step": 10, "kind": "validation", "x": 1.0}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 20, "ki')
    assert last_log_line(path) == lines[1]
    assert read_log(path) == {"loss": ([10], [2.0])}


def test_figures_that_were_not_finite_are_gaps_in_the_curves(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "kind": "train", "loss": null}\n{"step": 2, "kind": "train", "loss": NaN}\n')
    steps, values = read_log(path)["loss"]
    assert steps == [1, 2] and np.isnan(values).all()
