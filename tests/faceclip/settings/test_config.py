"""Configuration: precedence, nested overrides, and errors that name the key and the remedy."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch

from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting
from faceclip.training import TrainerConfig, from_dict, parse_config, to_dict
from train_encoder.config import EncoderConfig


@dataclass(kw_only=True)
class Inner:
    rate: float = 0.1
    sizes: tuple[int, ...] = (1, 2)
    mode: Literal["a", "b"] = "a"


@dataclass(kw_only=True)
class Outer:
    data: str = ""
    count: int = setting(3, "how many", resume="free")
    limit: float | None = None
    flag: bool = False
    names: list[str] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text("count: 5\ninner: {rate: 1.0e-2}\n")
    (tmp_path / "small.yaml").write_text("count: 50\n")
    return tmp_path


def test_later_sources_win(presets: Path, tmp_path: Path) -> None:
    assert parse_config(Outer, [], presets=presets) == Outer(count=5, inner=Inner(rate=0.01))
    assert parse_config(Outer, ["--preset", "small"], presets=presets).count == 50
    file = tmp_path / "mine.yml"
    file.write_text("count: 6\nflag: true\n")
    config = parse_config(Outer, [f"--config={file}", "inner.mode=b", "count=7", "data=DIR"], presets=presets)
    assert (config.count, config.flag, config.inner.mode, config.inner.rate, config.data) == (7, True, "b", 0.01, "DIR")


def test_values_keep_their_types() -> None:
    config = parse_config(Outer, ["limit=1e-3", "inner.sizes=[4,5,6]", "names=[x]", "inner.rate=2", "data=12"])
    assert config.limit == 1e-3 and config.inner.sizes == (4, 5, 6) and config.names == ["x"]
    assert isinstance(config.inner.rate, float) and config.data == "12"
    assert parse_config(Outer, ["limit=null"]).limit is None


def test_dict_round_trip() -> None:
    config = Outer(limit=0.5, inner=Inner(sizes=(9,)))
    assert from_dict(Outer, to_dict(config)) == config


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("inner.rat=1", r"^inner\.rat: .*\brate\?"),
        ("cuont=1", r"^cuont: .*\bcount\?"),
        ("count=1.5", r"^count: .*\bint, .*1\.5$"),
        ("count=true", r"^count: .*\bint, .*true$"),
        ("flag=1", r"^flag: .*\bbool, .*1$"),
        ("inner.mode=c", r"^inner\.mode: .*'a', 'b', .*\bc$"),
        ("inner=3", r"^inner: .*\b3$"),
        ("names=x", r"^names: .*\bx$"),
        ("count", "^'count': .*--preset NAME, --config FILE .*key=value"),
        ("--preset=huge", "^--preset 'huge': "),
    ],
)
def test_errors_name_the_key(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(Outer, [word])


@dataclass(kw_only=True)
class Limited:
    seed: int = setting(0, "least and below", least=0, below=4)
    share_of_all: float | None = setting(None, "above and most", above=0, most=1)
    sides: tuple[int, int] = setting((8, 8), "each of them", least=8)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["seed=-1"], "--seed"),
        (["seed=4"], "--seed"),
        (["share_of_all=0"], "--share-of-all"),
        (["share_of_all=1.1"], "--share-of-all"),
        (["sides=[9,7]"], "--sides"),
    ],
)
def test_limits_of_numbers(words: list[str], key: str) -> None:
    for flags in (True, False):
        with pytest.raises(ConfigError, match=f"^{key if flags else words[0].partition('=')[0]}: must be "):
            parse_config(Limited, words, flags=flags)
    for inside in (["seed=3", "share_of_all=1"], ["share_of_all=1e-9", "sides=[8,9]"]):
        parse_config(Limited, inside)
    with pytest.raises(ConfigError, match=r"^part\.share_of_all: must be finite"):
        check_bounds(Limited(share_of_all=float("inf")), "part.")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu"])
def test_devices_that_the_trainer_does_not_choose(device: str) -> None:
    with pytest.raises(ConfigError, match=r"^device: .*'auto', 'cpu'"):
        parse_config(TrainerConfig, [f"device={device}"])
    with pytest.raises(ConfigError, match=r"^trainer\.device: .*'auto', 'cpu'"):
        TrainerConfig(device=device)
    assert parse_config(TrainerConfig, ["device=cpu"]).device == "cpu"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("ema_decay=1.5", r"^trainer\.ema_decay: .*at least 0 and below 1 or null.* 1\.5$"),
        ("ema_decay=.nan", r"trainer\.ema_decay"),
        ("betas=[2,3]", r"^trainer\.betas: .*at least 0 and below 1.* 2\.0$"),
        ("num_threads=0", r"^trainer\.num_threads: .*\b1 .*null.* 0$"),
        ("seed=-1", r"^trainer\.seed: .*\b4,294,967,295.* -1$"),
        ("seed=4294967296", r"trainer\.seed"),
        ("save_every=-1", r"^trainer\.save_every: .* -1$"),
        ("learning_rate=.nan", r"^trainer\.learning_rate: .* nan$"),
        ("weight_decay=-1", r"^trainer\.weight_decay: .* -1\.0$"),
        ("max_grad_norm=-1", r"^trainer\.max_grad_norm: .* -1\.0$"),
        ("min_lr_ratio=2", r"^trainer\.min_lr_ratio: .* 2\.0$"),
    ],
)
def test_impossible_trainer_settings(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(TrainerConfig, [word])


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"steps": None}, "steps"),
        ({"steps": "5"}, "steps"),
        ({"steps": 10**400}, "steps"),
        ({"betas": (None, 0.9)}, "betas"),
        ({"trackers": ("nowhere",)}, "trackers"),
    ],
)
def test_values_of_other_types_that_code_gives(values: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^trainer\.{key}: "):
        TrainerConfig(**values)


def test_the_largest_seed_seeds_every_step_and_rank() -> None:
    seed = TrainerConfig(seed=2**32 - 1).seed
    torch.Generator().manual_seed(((seed + 7919) * 1_000_003 + 10**6) * 4096 + 4095)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config .*none\.yaml"):
        parse_config(Outer, ["--config", str(tmp_path / "none.yaml")])
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"--config .*bad\.yaml.*YAML"):
        parse_config(Outer, ["--config", str(tmp_path / "bad.yaml")])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ConfigError, match=r"--config .*picture\.png.*YAML"):
        parse_config(Outer, ["--config", str(tmp_path / "picture.png")])


def test_help_lists_every_key(capsys: pytest.CaptureFixture, presets: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        parse_config(Outer, ["--help"], presets=presets)
    shown = capsys.readouterr().out
    assert raised.value.code == 0
    assert "small, tiny" in shown
    assert [line.strip() for line in shown.splitlines() if line.startswith("  ")] == [
        "data: str (default '')",
        "count: int (default 3)  how many [may change on resume]",
        "limit: float | null (default None)",
        "flag: bool (default False)",
        "names: list[str] (default [])",
        "inner.rate: float (default 0.1)",
        "inner.sizes: tuple[int, ...] (default (1, 2))",
        "inner.mode: a | b (default 'a')",
    ]
    assert "Inner(" not in shown
    with pytest.raises(SystemExit):
        parse_config(EncoderConfig, ["-h"])
    lines = capsys.readouterr().out.splitlines()
    assert "  trainer.schedule: cosine | constant (default 'cosine')  course of the rate after the warm-up" in lines
    assert any(line.startswith("  data.portrait: float (default 2.5)  side of") for line in lines)
