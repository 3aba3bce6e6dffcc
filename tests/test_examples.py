"""The examples without what they need: one line that says what to run, no traceback."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search.py", ".", "--text", "a man"], "no folder runs/demo/encoder/export; make it by `make demo` or"),
        (["search.py", "nowhere", "--text", "a man", "--model", "."], "gallery: no folder nowhere; name one"),
        (["search.py", ".", "--text", "a man", "--model", "."], "error: "),
        (["photos.py"], "no folder runs/demo/generator/export; make it by `make demo` or"),
        (["photos.py", "--model", "."], "adapter.json is missing"),
    ],
)
def test_what_is_missing_is_told(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLES / arguments[0]), run_name="__main__")
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
