"""The rehearsal of stage 1."""

from tests.train_encoder.test_stage1 import arguments  # noqa: F401 - a fixture
from train_encoder.check import main


def test_the_rehearsal_measures_and_leaves_nothing(arguments, tmp_path, capsys):  # noqa: F811 - the fixture
    words = [*arguments, f"out={tmp_path / 'run'}", "trainer.device=cpu", "trainer.steps=50"]
    assert main(words) == 0, capsys.readouterr()
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)
    assert "persons" in lines["data, validation"] and "image " in lines["weights"]
    assert "moments" in lines["memory"] and "composed_joint" in lines["validation"]
    assert "50 steps take about" in lines["time"]
    assert list(tmp_path.iterdir()) == []
    assert main([*words, "price_per_hour=-1"]) == 2
    assert "price_per_hour" in capsys.readouterr().err
