"""Thresholds on figures: which rows a rule drops. They are applied to stored figures and can change at any time."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from faceclip.errors import ConfigError
from faceclip.settings import setting

UNMEASURED, DUPLICATE, RANK = "unmeasured", "duplicate", "rank"
MOST_RULES = 63  # one bit each
_OWN = re.compile(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(kw_only=True)
class KeepConfig:
    """What a picture must be to be kept. null switches a rule off; a rule whose figures were not measured is off.

    The defaults were chosen on photographs with planted faults (docs/curation.md).
    """

    min_side: float | None = setting(128, "px of the shorter side")
    max_aspect: float | None = setting(3, "longer side in shorter sides")
    min_color: float | None = setting(2.0, "channel_deviation: grey pictures are below")
    min_tint: float | None = setting(2.5, "tint_deviation: sepia and other toned pictures are below")
    min_luminance: float | None = setting(0.08, "mean luma, 0 to 1")
    max_luminance: float | None = setting(0.92, "mean luma, 0 to 1")
    min_contrast: float | None = setting(0.06, "standard deviation of the luma")
    max_dark: float | None = setting(0.6, "share of black pixels")
    max_bright: float | None = setting(0.5, "share of white pixels")
    min_sharpness: float | None = setting(0.003, "energy of the Laplacian by that of the picture")
    min_face_sharpness: float | None = setting(0.012, "the same in the aligned face")
    min_faces: float | None = setting(1, "faces that the detector is sure of")
    max_faces: float | None = setting(None, "faces that the detector is sure of")
    max_second_face: float | None = setting(0.3, "area of the second largest face in areas of the largest")
    min_face_side: float | None = setting(64, "px of the aligned face")
    max_text: float | None = setting(0.02, "share of the picture in boxes of text")
    max_watermark: float | None = setting(0.5, "confidence of a text that reads like a watermark")
    max_cartoon: float | None = setting(0.9, "likelihood of a drawn face")
    max_flat: float | None = setting(0.3, "share of pixels without any texture")
    rules: tuple[str, ...] = setting((), "further ones on any column, as in '[\"nsfw<=0.5\"]'")
    duplicates: int | None = setting(4, "bits of 64 by which the hashes of near-duplicates differ at most")
    face_duplicates: int | None = setting(4, "the same for the hashes of aligned faces, which crops do not change")
    top: int = setting(0, "keep only so many, those of the most pixels; 0: all")

    def __post_init__(self) -> None:
        for name in ("duplicates", "face_duplicates"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 12:
                raise ConfigError(f"keep.{name}: 0 to 12 bits, or null, are expected, got {value}")
        for name in _SETTINGS:
            bound = getattr(self, name)
            if bound is not None and not math.isfinite(bound):
                raise ConfigError(f"keep.{name}: a finite number, or null, is expected, got {bound}")
        if self.top < 0:
            raise ConfigError(f"keep.top: must not be negative, got {self.top}")
        for text in self.rules:
            parse_rule(text)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Keeps rows whose `column` is at least or at most `bound`. A row without that figure is kept by it."""

    name: str
    column: str
    side: Literal["<=", ">="]
    bound: float

    def drops(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the values (N,), NaN where there is none, are dropped."""
        return values > self.bound if self.side == "<=" else values < self.bound


_SETTINGS: dict[str, tuple[str, str, Literal["<=", ">="]]] = {
    "min_side": ("small", "side", ">="),
    "max_aspect": ("long", "aspect", "<="),
    "min_color": ("grey", "channel_deviation", ">="),
    "min_tint": ("toned", "tint_deviation", ">="),
    "min_luminance": ("dark", "luminance", ">="),
    "max_luminance": ("bright", "luminance", "<="),
    "min_contrast": ("pale", "contrast", ">="),
    "max_dark": ("black", "dark_share", "<="),
    "max_bright": ("white", "bright_share", "<="),
    "min_sharpness": ("blurred", "sharpness", ">="),
    "min_face_sharpness": ("blurred_face", "face_sharpness", ">="),
    "min_faces": ("no_face", "faces", ">="),
    "max_faces": ("many_faces", "faces", "<="),
    "max_second_face": ("group", "second_face", "<="),
    "min_face_side": ("small_face", "face_side", ">="),
    "max_text": ("text", "text_share", "<="),
    "max_watermark": ("watermark", "watermark", "<="),
    "max_cartoon": ("cartoon", "cartoon", "<="),
    "max_flat": ("flat", "flat_share", "<="),
}
_HASHES = {"duplicates": "hash", "face_duplicates": "face_hash"}


def parse_rule(text: str) -> Rule:
    """A rule written as COLUMN<=NUMBER or COLUMN>=NUMBER. Raises ConfigError."""
    match = _OWN.fullmatch(text)
    try:
        bound = float(match.group(3)) if match else math.nan
    except ValueError:
        bound = math.nan
    if match is None or not math.isfinite(bound):
        raise ConfigError(f"keep.rules: {text!r} is no rule; expected COLUMN<=NUMBER or COLUMN>=NUMBER")
    side: Literal["<=", ">="] = "<=" if match.group(2) == "<=" else ">="
    return Rule(name=text.replace(" ", ""), column=match.group(1), side=side, bound=bound)


def hashes_asked(keep: KeepConfig) -> dict[str, int]:
    """Columns of hashes by which duplicates are looked for, and how many bits may differ."""
    asked = {column: getattr(keep, name) for name, column in _HASHES.items()}
    return {column: bits for column, bits in asked.items() if bits is not None}


def active_rules(keep: KeepConfig, schema: pa.Schema) -> list[Rule]:
    """The rules whose figures were measured.

    Raises ConfigError for a rule that one asked for whose figures were not, or that asks for no number; for bits of
    hashes and `top` likewise.
    """
    usual, rules = KeepConfig(), []
    wanted = {
        f"keep.{name}": column
        for name, column in _HASHES.items()
        if getattr(keep, name) not in (None, getattr(usual, name))
    }
    wanted |= {"keep.top": "pixels"} if keep.top else {}
    for word, column in wanted.items():
        if column not in schema.names:
            raise ConfigError(f"{word}: {column!r} was not measured: add its measure to measures=")
    for setting_name, (name, column, side) in _SETTINGS.items():
        bound = getattr(keep, setting_name)
        if bound is None:
            continue
        if column in schema.names:
            rules.append(Rule(name=name, column=column, side=side, bound=float(bound)))
        elif bound != getattr(usual, setting_name):
            raise ConfigError(f"keep.{setting_name}: {column!r} was not measured: add its measure to measures=")
    for text in keep.rules:
        rule = parse_rule(text)
        numbers = [f.name for f in schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
        if rule.column not in numbers:
            raise ConfigError(f"keep.rules: {rule.column!r} is no figure; there are {', '.join(numbers)}")
        rules.append(rule)
    if len(rules) > MOST_RULES - 3:
        raise ConfigError(f"keep.rules: {len(rules)} rules, at most {MOST_RULES - 3} are possible")
    return rules


def reason_names(rules: Sequence[Rule]) -> list[str]:
    """Names of the bits of `reason_bits`, from the lowest: one per rule, then the three of the whole set."""
    return [*(rule.name for rule in rules), UNMEASURED, DUPLICATE, RANK]


def reason_bits(rules: Sequence[Rule], table: pa.Table) -> NDArray[np.int64]:
    """Bit i of (N,) says that rule i drops the row; the bit after them that nothing was measured of it."""
    bits = np.zeros(len(table), np.int64)
    unmeasured = np.array([bool(reason) for reason in table["reason"].to_pylist()], bool)
    for number, rule in enumerate(rules):
        values = numbers(table, rule.column)
        bits |= np.int64(1 << number) * (rule.drops(values) & ~unmeasured)
    return bits | np.int64(1 << len(rules)) * unmeasured


def numbers(table: pa.Table, column: str) -> NDArray[np.float64]:
    """A column as floats, NaN where it is empty."""
    return table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)


def rank_bits(dropped: NDArray[np.bool_], pixels: NDArray[np.float64], top: int) -> NDArray[np.bool_]:
    """Which rows, not dropped yet, are not among the `top` of these with the most pixels; earlier rows win ties."""
    kept = np.flatnonzero(~dropped)
    beyond = np.zeros(len(dropped), bool)
    if top and len(kept) > top:
        beyond[kept[np.argsort(-pixels[kept], kind="stable")[top:]]] = True
    return beyond


@dataclass(frozen=True)
class Overlap:
    """counts (R, R): rows that both rules drop; alone (R,): rows that no other rule drops."""

    names: list[str] = field(default_factory=list)
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    alone: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


def overlaps(names: list[str], bits: NDArray[np.int64]) -> Overlap:
    """How often rules drop the same rows."""
    masks = [(bits >> number) & 1 == 1 for number in range(len(names))]
    counts = np.array([[int((first & second).sum()) for second in masks] for first in masks], np.int64)
    alone = np.array([int((bits == 1 << number).sum()) for number in range(len(names))], np.int64)
    return Overlap(names, counts.reshape(len(names), len(names)), alone)


assert set(_SETTINGS) <= {f.name for f in fields(KeepConfig)}
