"""The rehearsal of stage 2: what it finds, what it leaves, and that it refuses what the run would."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from faceclip.data.arrays import load_arrays
from faceclip.data.records import Caption
from train_generator.check import look_at_rows, main


def test_the_rehearsal_measures_and_leaves_nothing(arguments, tmp_path, capsys):
    words = [*arguments, f"out={tmp_path / 'runs' / 'one'}", "trainer.device=cpu", "trainer.steps=100"]
    assert main([*words, "price_per_hour=3"]) == 0, capsys.readouterr()
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert "rows " in lines["data, train"] and "blank 0" in lines["data, validation"]
    assert "encoder " in lines["weights"] and "data " in lines["weights"]
    assert "export Apache-2.0" in lines["licences"]
    assert "moments" in lines["memory"] and "gradients" in lines["memory"]
    assert "loss_noise" in lines["validation"]
    assert "100 steps take about" in lines["time"] and "at 3 an hour" in lines["time"]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_for_the_run_is_named(arguments, tmp_path, capsys, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    assert main([*arguments, f"out={tmp_path / 'run'}", "trainer.device=cpu"]) == 2
    assert "error: out=" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_what_the_run_refuses_and_several_processes_are_refused(arguments, tmp_path, capsys, monkeypatch):
    assert main([*arguments, f"out={tmp_path / 'run'}", "encoder=/nowhere"]) == 2
    assert "encoder=/nowhere" in capsys.readouterr().err
    assert main([*arguments, "check_rows=0"]) == 2
    assert "check_rows" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*arguments, f"out={tmp_path / 'run'}"]) == 2
    assert "one process" in capsys.readouterr().err


def test_bad_rows_are_counted(tiny_dataset: Path):
    arrays = load_arrays(tiny_dataset, "train")
    good = look_at_rows(arrays, 5)
    assert good == {"rows": 5, "blank": 0, "faces cut": 0, "empty maps": 0, "without words": 0, "captions cut": 0}
    images, shading, points = (np.array(x[:]) for x in (arrays.images, arrays.shading, arrays.landmarks_5))
    images[0], shading[0], points[0, 0] = 7, 0, [-3, 0]
    bad = replace(arrays, images=images, shading=shading, landmarks_5=points)
    said = [list(row) for row in arrays.captions]
    said[0] = [Caption(text=" ", kind="free")]
    said[-1] = [Caption(text="a very long story " * 40, kind="free")]
    bad.__dict__["captions"] = said
    expected = {"blank": 1, "faces cut": 1, "empty maps": 1, "without words": 1, "captions cut": 1}
    found = look_at_rows(bad, 1000)
    assert {name: found[name] for name in expected} == expected and found["rows"] == len(arrays)


@pytest.mark.parametrize("name", ["check_rows", "price_per_hour"])
def test_what_only_the_check_asks_is_told_by_its_help(name, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert name in capsys.readouterr().out
