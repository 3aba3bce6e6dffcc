"""Overrides and YAML files from a seeded grammar: every one gives the right configuration or a ConfigError in one line.

What is right is computed by the grammar itself, which writes a value of a known type in one of its spellings.
"""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from faceclip.errors import ConfigError
from faceclip.settings import from_dict, guarded, parse_config, setting, to_dict

OVERRIDES, FILES, LONGEST = 2000, 500, 2000
MISTAKE = object()  # of a spelling that must be refused


@dataclass(kw_only=True)
class Part:
    rate: float = setting(0.5, "a number")
    sizes: tuple[int, ...] = (1, 2)
    mode: Literal["slow", "fast"] = "slow"


@dataclass(kw_only=True)
class Whole:
    out: str = setting("runs/x", "a folder", path=True)
    name: str = "n"
    place: Path = Path("here")
    count: int = 1
    share: float = 0.1
    flag: bool = False
    limit: float | None = None
    label: str | None = None
    both: str | tuple[str, ...] = ()
    names: list[str] = setting(factory=list)
    table: dict[str, float] = setting(factory=dict)
    pair: tuple[int, int] = (1, 2)
    part: Part = setting(factory=Part)


TEXTS = (
    "runs/r #2",
    "12:30",
    "001",
    "2026-11-29",
    "runs/a: b",
    "no",
    "yes",
    "1e5",
    "0x1f",
    "a=b",
    "- x",
    "*x",
    "&x",
    "!tag",
    "{a",
    "[a",
    "%x",
    "@x",
    "`x`",
    "a, b",
    "ä ö",
    "x" * 300,
    "'half",
    "b'",
    ".inf",
    "..",
    "|",
    ">",
    "?",
    "---",
)
JUNK = (
    "0b_",
    "!!bool x",
    "!!python/object:os.system x",
    "9" * 400,
    "-" + "9" * 90,
    "[" * 100,
    "{" * 100,
    "- " * 100,
    "&a [*a, *a]",
    "*nowhere",
    "[1, 2",
    "{a: 1",
    '"\\ud800"',
    '"\\UFFFFFFFF"',
    "\x07",
    "1_",
    "1__2",
    "_1",
    "0x",
    "1e",
    "١٢",
    "%YAML " + "9" * 5000,
    "a: b: c",
    "? - x",
    "\t- x",
    "x\n---\ny",
    "nul\0l",
    "\ud800",
)


def text_of(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(TEXTS)
    return "".join(rng.choice(string.printable[:95]) for _ in range(rng.randint(1, 12)))


def of_text(rng: random.Random) -> tuple[str, Any]:
    text = text_of(rng)
    return text, "" if text in ("''", '""') else text


def of_path(rng: random.Random) -> tuple[str, Any]:
    if rng.random() < 0.2:
        return "~/runs/x", str(Path.home() / "runs" / "x")
    text, value = of_text(rng)
    return (f"a{text}", f"a{text}") if text.startswith("~") else (text, value)


def of_integer(rng: random.Random) -> tuple[str, Any]:
    if rng.random() < 0.3:
        return rng.choice(
            ("1.5", "true", "null", "x", "", "12:30", "0x10", "0b_", "1e3", "9" * 400, "2026-11-29")
        ), MISTAKE
    value = rng.randint(-(10**6), 10**6)
    return rng.choice((f"{value}", f"{value:_}", f"{value:+}", f"{value:+08d}")), value


def of_number(rng: random.Random) -> tuple[str, Any]:
    if rng.random() < 0.3:
        return rng.choice(("x", "true", "", "12:30", "0b_", "1.2.3", ".nan", "inf", "1e999", "1" * 400, "١")), MISTAKE
    value = rng.choice((rng.random(), float(rng.randint(-99, 99)), 1e-3, 2.5e10))
    return rng.choice((f"{value!r}", f"{value:.17g}", f"{value:.17e}", f"{value:+.17g}")), value


def of_flag(rng: random.Random) -> tuple[str, Any]:
    if rng.random() < 0.3:
        return rng.choice(("1", "0", "maybe", "", "null", "!!bool x", "tru")), MISTAKE
    value = rng.random() < 0.5
    word = rng.choice(("true", "yes", "on") if value else ("false", "no", "off"))
    return rng.choice((word, word.upper(), word.title())), value


def of_limit(rng: random.Random) -> tuple[str, Any]:
    return ("null", None) if rng.random() < 0.3 else of_number(rng) if rng.random() < 0.5 else ("7", 7.0)


def of_label(rng: random.Random) -> tuple[str, Any]:
    return (rng.choice(("null", "~")), None) if rng.random() < 0.3 else of_text(rng)


def of_mode(rng: random.Random) -> tuple[str, Any]:
    return rng.choice((("slow", "slow"), ("fast", "fast"), ("Slow", MISTAKE), ("", MISTAKE), ("[fast]", MISTAKE)))


def of_numbers(rng: random.Random) -> tuple[str, Any]:
    values = [rng.randint(-99, 99) for _ in range(rng.randint(0, 4))]
    return f"[{rng.choice((', ', ',')).join(map(str, values))}]", tuple(values)


def of_pair(rng: random.Random) -> tuple[str, Any]:
    text, values = of_numbers(rng)
    return text, values if len(values) == 2 else MISTAKE


KINDS: dict[str, Callable[[random.Random], tuple[str, Any]]] = {
    "out": of_path,
    "name": of_text,
    "count": of_integer,
    "share": of_number,
    "flag": of_flag,
    "limit": of_limit,
    "label": of_label,
    "part.rate": of_number,
    "part.sizes": of_numbers,
    "part.mode": of_mode,
    "pair": of_pair,
    "table.hair": of_number,
}


def value_at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def refused(words: list[str]) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_config(Whole, words)
    message = str(raised.value)
    assert "\n" not in message and len(message) <= LONGEST
    return message


@pytest.mark.parametrize(
    "count", [OVERRIDES, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_overrides_of_the_grammar(count: int) -> None:
    rng = random.Random(20261129)
    wrong = 0
    for _ in range(count):
        key, kind = rng.choice(list(KINDS.items()))
        text, expected = kind(rng)
        words = rng.choice(([f"{key}={text}"], [f"--{key}={text}"]))
        if expected is MISTAKE:
            wrong += 1
            assert key in refused(words)
        else:
            config = parse_config(Whole, words)
            found = value_at(config, key)
            assert found == expected and type(found) is type(expected), (words, found)
            assert from_dict(Whole, to_dict(config)) == config
    assert count / 10 < wrong < count / 2


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_junk_in_every_field(junk: str, tmp_path: Path) -> None:
    """Text fields may take it as it is; nothing else does, and nothing but ConfigError comes out."""
    file = tmp_path / "junk.yaml"
    for key in (*KINDS, "both", "names", "table", "part", "place", "nothing", "part.nothing", "table.a.b"):
        for words in (
            [f"{key}={junk}"],
            [f"--{key}", junk],
            [f"{junk}={key}"],
            [junk],
            ["--preset", junk],
            [f"--{junk}"],
        ):
            try:
                config = parse_config(Whole, words)
            except ConfigError as error:
                assert "\n" not in str(error) and len(str(error)) <= LONGEST
            else:
                assert key in ("out", "name", "label", "both", "place") and value_at(config, key) is not None
        file.write_text(f"{key}: {junk}\n", encoding="utf-8", errors="surrogatepass")
        outcome(file)


def outcome(file: Path) -> Whole | None:
    """The configuration of a file, or None when it is refused in one capped line that names a file or a key."""
    try:
        return parse_config(Whole, ["--config", str(file)])
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) <= LONGEST
        return None


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.mark.parametrize("count", [FILES, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_files_of_the_grammar(tmp_path: Path, count: int) -> None:
    rng = random.Random(1129)
    file, right = tmp_path / "some.yaml", 0
    for _ in range(count):
        chosen = {key: KINDS[key](rng) for key in rng.sample(list(KINDS), 3)}
        lines, expected = [], {}
        for key, (text, value) in chosen.items():
            is_text = KINDS[key] in (of_text, of_path, of_label)
            text = quoted(text) if is_text and value is not None else text
            value = value if not (is_text and value == "" and text != "''") else text[1:-1].replace("''", "'")
            expected[key] = None if key == "limit" and not text else value  # nothing means null in YAML
            parts = key.split(".")
            lines.append(f"{parts[0]}: {{{parts[1]}: {text}}}" if len(parts) > 1 else f"{key}: {text}")
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        config = outcome(file)
        repeated = len({key.split(".")[0] for key in chosen}) < len(chosen)
        if MISTAKE in expected.values() or repeated:
            assert config is None, lines
        else:
            right += 1
            assert config is not None, lines
            for key, value in expected.items():
                assert value_at(config, key) == value, lines
    assert right > count / 5


@pytest.mark.parametrize("count", [FILES, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_mutated_files(tmp_path: Path, count: int) -> None:
    rng = random.Random(7)
    whole = "out: runs/a\ncount: 3\npart: &p {rate: 0.5, sizes: [1, 2]}\nnames: [a, 'b']\ntable: {hair: 1}\nflag: no\n"
    file = tmp_path / "some.yaml"
    pieces = (
        "[",
        "]",
        "{",
        "}",
        ":",
        "- ",
        "&a ",
        "*a",
        "*p",
        "!!int ",
        "<<: *p\n",
        "'",
        '"',
        "\\",
        "|",
        "%",
        "\0",
        "\x85",
        "?",
        "~",
        "\n",
        " ",
    )
    survived = 0
    for _ in range(count):
        text = whole
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(text))
            text = text[:place] + rng.choice((*pieces, "")) + text[place + rng.choice((0, 1, 5)) :]
        file.write_text(text, encoding="utf-8")
        survived += outcome(file) is not None
    assert 0 < survived < count


def test_alias_bombs_and_depth_end_early(tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for one, two in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]")
    bomb = "\n".join(lines)
    ladder = "\n".join(f"k{n}: &k{n} [{f'*k{n - 1}' if n else 'x'}]" for n in range(2000))
    for text in (bomb, ladder, "x: &x [*x]", "names: " + "[" * 5000, "? " * 5000, "a: " + "9" * (2**20)):
        file.write_text(text)
        assert str(file) in refused(["--config", str(file)])


@pytest.mark.parametrize("mark", ["[", "{", "- ", "? ", "{a: ", "!", "&", "*", "|", "'"])
def test_deep_and_long_values(mark: str) -> None:
    for key in ("names", "table", "part", "count", "part.sizes"):
        assert refused([f"{key}={mark * 3000}"]).startswith(key)


@pytest.mark.parametrize("place", ["/dev/zero", "/", "/nowhere/x.yaml", "x\0y", "\ud800", "x" * 5000])
def test_places_that_are_no_configuration_file(place: str) -> None:
    assert "configuration file" in refused([f"--config={place}"])


def test_anchors_and_merged_mappings_of_ordinary_files(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("table: &t {hair: 1, eyes: 2}\npart: {sizes: [3]}\nlabel: null\nboth: [a, b]\nplace: ~/x\n")
    config = parse_config(Whole, ["--config", str(file)])
    assert config.table == {"hair": 1.0, "eyes": 2.0} and config.part.sizes == (3,) and config.label is None
    assert config.both == ("a", "b") and config.place == Path.home() / "x"
    file.write_text("table:\n  <<: [{hair: 1, eyes: 2}]\n  hair: 3\n")
    assert parse_config(Whole, ["--config", str(file)]).table == {"hair": 3.0, "eyes": 2.0}
    file.write_text("count: 1\ncount: 2\n")
    assert "'count'" in refused(["--config", str(file)])


def test_messages_are_capped_everywhere(capsys: pytest.CaptureFixture) -> None:
    def work() -> None:
        raise ConfigError(f"key: {'x' * 10**6}\nname another")

    assert guarded(work) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: key: xxx") and line.endswith("name another\n") and line.count("\n") == 1
    assert len(line) <= LONGEST + 10
