"""What every command does around its work, and the two spellings of its words."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from faceclip.errors import ConfigError, DataError
from faceclip.settings import parse_config, run, setting
from faceclip.settings.config import plain_words


@dataclass(kw_only=True)
class Options:
    source: Path = setting(help="what is read", positional=True)
    out: Path = setting(help="where it goes")
    images_per_arm: int = setting(5, "pictures")
    detector: bool = setting(True, "look for faces")
    splits: tuple[int, int, int] | None = setting(None, "people")
    mode: Literal["slow", "fast"] = setting("slow", "pace")


@dataclass(kw_only=True)
class Places:
    out: str = setting("runs/x", "folder", path=True)
    plain: str = ""
    file: Path | None = None


BOTH = [
    ["src", "--out", "o", "--images-per-arm", "7", "--no-detector", "--splits", "1", "2", "3", "--mode", "fast"],
    ["src", "--out=o", "--images-per-arm=7", "--detector=false", "--splits=[1, 2, 3]", "--mode=fast"],
    ["source=src", "out=o", "images_per_arm=7", "detector=no", "splits=[1,2,3]", "mode=fast"],
    ["--splits", "[1,2,3]", "src", "out=o", "--images_per_arm", "7", "--no-detector", "mode=fast"],
]


@pytest.mark.parametrize("words", BOTH)
def test_both_spellings_say_the_same(words: list[str]) -> None:
    expected = Options(
        source=Path("src"), out=Path("o"), images_per_arm=7, detector=False, splits=(1, 2, 3), mode="fast"
    )
    for flags in (True, False):
        assert parse_config(Options, words, flags=flags) == expected
    plain = plain_words(Options, words)
    assert all("=" in word and not word.startswith("-") for word in plain)
    assert parse_config(Options, plain) == expected


@pytest.mark.parametrize(("flags", "required"), [(True, "SOURCE --out PATH"), (False, "SOURCE out=PATH")])
def test_help_begins_with_what_is_required(flags: bool, required: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse_config(Options, ["--help"], flags=flags)
    assert f" {required} [" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["src"], "--out"),
        (["--out", "o"], "SOURCE"),
        (["src", "--out"], "--out"),
        (["src", "--out", "--mode", "fast"], "--out"),
        (["src", "--out", "o", "--splits", "1", "2"], "--splits"),
        (["src", "--out", "o", "--images-per-amr", "2"], "--images-per-amr"),
        (["src", "--out", "o", "--images-per-arm", "two"], "--images-per-arm"),
        (["src", "--out", "o", "--mode", "medium"], "--mode"),
        (["src", "--out", "o", "--no-mode"], "--no-mode"),
        (["src", "other", "--out", "o"], "other"),
        (["src", "--out", "o", "-x"], "-x"),
    ],
)
def test_errors_name_what_was_typed(words: list[str], named: str, capsys: pytest.CaptureFixture) -> None:
    assert run(lambda options: None, Options, words, flags=True) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and named in line


def test_negative_numbers_follow_their_key() -> None:
    assert parse_config(Options, ["src", "--out", "o", "--images-per-arm", "-3"]).images_per_arm == -3


def test_a_leading_tilde_stands_for_the_home_folder_in_paths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    config = parse_config(Places, ["out=~/runs", "plain=~/runs", "file=~"])
    assert (config.out, config.plain, config.file) == ("/home/somebody/runs", "~/runs", Path("/home/somebody"))
    for words in (["file="], ["file=''"]):
        with pytest.raises(ConfigError, match=r"^file: "):  # the folder where a command runs is never meant by nothing
            parse_config(Places, words)
    assert parse_config(Places, ["file=null"]).file is None


def test_status_is_that_of_the_work_its_error_or_the_interrupt(capsys: pytest.CaptureFixture) -> None:
    def fail(places: Places) -> None:
        raise DataError(f"{places.out}: gone,\n  find it")

    def interrupt(places: Places) -> None:
        raise KeyboardInterrupt

    assert run(lambda places: None, Places, []) == 0
    assert run(lambda places: 75, Places, []) == 75
    assert run(fail, Places, ["out=here"]) == 2
    assert capsys.readouterr().err == "error: here: gone, find it\n"
    assert run(interrupt, Places, [], interrupted="stopped; run again to resume") == 130
    assert capsys.readouterr().err == "stopped; run again to resume\n"
    with pytest.raises(ZeroDivisionError):  # a fault of ours is no user's error
        run(lambda places: 1 // 0, Places, [])


def test_settings_given_in_place_of_a_file() -> None:
    assert parse_config(Places, ["--config", "{out: a, plain: 'b'}", "plain=c"]) == Places(out="a", plain="c")
    for given in ("{out: [1]}", "[1]", "{", "{uot: a}"):
        with pytest.raises(ConfigError, match=r"--config"):
            parse_config(Places, ["--config", given])


def test_the_package_costs_no_torch() -> None:
    code = "import sys, faceclip.settings; print(sorted({'torch', 'numpy', 'accelerate'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
