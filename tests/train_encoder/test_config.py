"""Settings of stage 1 that no model or sample could have are refused by name."""

import pytest

from faceclip.errors import ConfigError
from faceclip.training import parse_config
from train_encoder.__main__ import main
from train_encoder.config import PRESETS, EncoderConfig


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sampling.face_only=-0.1", r"^sampling\.face_only: .* -0\.1"),
        ("sampling.same_picture=.nan", r"^sampling\.same_picture: .* nan"),
        ("fusion.attention_heads=3", r"^fusion\.attention_heads: .*fusion\.attention_width.* 128"),
        ("fusion.attention_heads=0", r"^fusion\.attention_heads: .* 0$"),
        ("heads.hidden=0", r"^heads\.hidden: .* 0$"),
    ],
)
def test_impossible_settings(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(EncoderConfig, [word], presets=PRESETS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["heads.heads=3"], "heads.heads: must divide the width of both text towers together, which is 64; got 3"),
        (["fusion.face_heads=3"], "fusion.face_heads: must divide the width of towers.text_l, which is 32; got 3"),
        (["fusion.attention_heads=64"], "fusion.attention_heads: must divide the width of towers.text_l, which is 32"),
    ],
)
def test_heads_that_do_not_divide_the_towers(tower_arguments, words, message, tmp_path, capsys) -> None:
    """Found before the data are looked at, whose features may take hours."""
    assert main([f"data={tmp_path}", *tower_arguments, *words]) == 2
    assert message in capsys.readouterr().err
