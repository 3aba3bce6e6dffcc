"""The command: a whole run, its files, killed and resumed, and what is said of missing networks."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.benchmark.__main__ import main
from tests.warm import Process

ROOT = Path(__file__).parents[3]
SUITE = """
name: <b>small</b>
licence: CC0-1.0
origin: rendered for a test
references: {{kind: data, folder: {data}}}
prompts: {{captions: 3}}
pictures: 2
size: [64, 64]
failures: 0.2
metrics: [facesim/all@1, sim_gt@1, gallery/rank1@1, detection@1, prompt/judge@1, clip_t/l14@1, clip_t/shipped@1,
  fid/judge@1, kid/judge@1, pose_rmse/yaw@1, light_rmse@1, diversity/judge@1, facesim/prior@1, cost/seconds@1]
models: {{clip_l14: nobody/no-such-clip}}
"""
METHODS = """
methods:
- {{name: noise, kind: peer, adapter: "benchmark_noise:make", options: {{fails: [3], log: {log}}}}}
- {{name: plain, kind: plain, model: {model}, steps: 1}}
- {{name: same person, kind: real}}
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_dataset, pipeline_export, adapter_folder):
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "suite.yaml").write_text(SUITE.format(data=tiny_dataset))
    (folder / "methods.yaml").write_text(METHODS.format(log=folder / "log", model=pipeline_export))
    return ["--suite", str(folder / "suite.yaml"), "--methods", str(folder / "methods.yaml")], folder


@pytest.fixture(scope="module")
def finished(command, adapter_folder):
    """A run that was killed after its third picture and resumed."""
    words, folder = command
    out = folder / "out"
    command = ["-m", "eval.benchmark", *words, "--out", str(out), "--threads", "1"]
    process = Process(command, os.environ | {"PYTHONPATH": f"{ROOT}:{adapter_folder}"})
    deadline = time.monotonic() + 300
    while len(list(out.glob("pictures/plain/*.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (folder / "log").read_text()
    assert main([*words, "--out", str(out)]) == 0
    assert (folder / "log").read_text() == before  # what was drawn is not drawn again
    return out


def test_a_killed_run_ends_with_the_pictures_of_one_that_was_not(command, finished, capsys):
    words, folder = command
    assert main([*words, "--out", str(folder / "again"), "--draw-only"]) == 0
    assert "all pictures are drawn" in capsys.readouterr().out
    names = sorted(path.relative_to(finished) for path in finished.glob("pictures/*/*.png"))
    assert len(names) == 12 - 1 + 12 + 12
    for name in names:
        np.testing.assert_array_equal(
            np.asarray(Image.open(finished / name)), np.asarray(Image.open(folder / "again" / name))
        )


def test_every_figure_is_there_or_said_to_be_missing(finished):
    content = json.loads((finished / "results.json").read_text())
    noise, plain, real = (content["methods"][name] for name in ("noise", "plain", "same person"))
    assert noise["failed"] == 1 and noise["drawn"] == 11 and real["drawn"] == 12
    assert (
        real["figures"]["facesim/all@1 [recognizer]"]["value"] > plain["figures"]["facesim/all@1 [recognizer]"]["value"]
    )
    assert noise["figures"]["facesim/all@1 [second recognizer]"]["count"] == 12  # the failed one counts as 0
    assert noise["figures"]["prompt/judge@1"]["count"] == 11
    assert noise["figures"]["facesim/prior@1 [recognizer]"]["count"] == 11
    assert plain["figures"]["diversity/judge@1"]["count"] == 6
    assert plain["sets"]["fid/judge@1"]["n"] == 12 and any("below 2,000" in note for note in plain["notes"])
    assert "hf download nobody/no-such-clip" in content["protocol"]["not measured"]["clip_l14"]
    assert not any(name.startswith("clip_t/l14") for name in plain["figures"])
    networks = content["protocol"]["networks"]
    assert len(networks["judge"]["sha256"]) == 64 and networks["recognizer"]["id"] == "tiny/recognizer"


def test_the_report_is_one_file_with_escaped_names(finished):
    page = (finished / "report.html").read_text()
    assert "&lt;b&gt;small" in page and "<b>small" not in page
    assert "hf download nobody/no-such-clip" in page and "not measured" in page
    assert "data:image/jpeg" in page and 'src="http' not in page and 'href="http' not in page
    assert "<caption>Identity, by second recognizer</caption>" in page and "What these metrics are" in page
    assert "no picture of seed 3" in page and "1 of 12 pictures failed" in page
    assert (finished / "values.csv").read_text().count("\n") == 37
    assert (finished / "table.tex").read_text().startswith(r"\begin{tabular}")


def test_a_finished_run_is_not_measured_again_unless_something_changed(command, finished):
    words, _ = command
    before = (finished / "report.html").stat().st_mtime_ns
    assert main([*words, "--out", str(finished)]) == 0
    assert (finished / "report.html").stat().st_mtime_ns == before
    (finished / "measured.json").write_text('{"of": "another"}')
    assert main([*words, "--out", str(finished)]) == 0
    assert (finished / "report.html").stat().st_mtime_ns > before


def test_what_cannot_be_run_is_said_in_one_line(command, finished, tmp_path, capsys):
    words, folder = command
    assert main(["--suite", words[1], "--out", str(tmp_path)]) == 2
    assert "--methods" in capsys.readouterr().err
    other = tmp_path / "suite.yaml"
    other.write_text((folder / "suite.yaml").read_text().replace("captions: 3", "captions: 2"))
    assert main(["--suite", str(other), *words[2:], "--out", str(finished)]) == 2
    assert "another suite" in capsys.readouterr().err
    other.write_text((folder / "suite.yaml").read_text().replace("clip_l14:", "clip:"))
    assert main(["--suite", str(other), *words[2:], "--out", str(tmp_path / "o")]) == 2
    assert "models: no metric uses 'clip'" in capsys.readouterr().err
