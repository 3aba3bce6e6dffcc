"""Rules drop rows by thresholds on stored figures, so that thresholds can change without measuring again."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from faceclip.errors import ConfigError
from faceclip.settings import check_bounds, setting

UNMEASURED, DUPLICATE, RANK = "unmeasured", "duplicate", "rank"
MOST_RULES = 63  # a bit each in a signed integer of 64 bits
_OWN = re.compile(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(kw_only=True)
class KeepConfig:
    """The conditions that kept pictures meet. A rule is off if it is null or if its figure was not measured.

    The defaults were chosen on photographs with planted faults (docs/curation.md).
    """

    min_side: float | None = setting(128, "shorter side in px")
    max_aspect: float | None = setting(3, "longer side divided by the shorter one")
    min_color: float | None = setting(2.0, "channel_deviation, which is lower for grey pictures")
    min_tint: float | None = setting(2.5, "tint_deviation, which is lower for sepia and other toned pictures")
    min_luminance: float | None = setting(0.08, "mean luma, 0 to 1")
    max_luminance: float | None = setting(0.92, "mean luma, 0 to 1")
    min_contrast: float | None = setting(0.06, "standard deviation of the luma")
    max_dark: float | None = setting(0.6, "share of black pixels")
    max_bright: float | None = setting(0.5, "share of white pixels")
    min_sharpness: float | None = setting(0.003, "variance of the Laplacian divided by that of the picture")
    min_face_sharpness: float | None = setting(0.012, "the same in the aligned face")
    min_faces: float | None = setting(1, "faces with a score of at least .9")
    max_faces: float | None = setting(None, "faces with a score of at least .9")
    max_second_face: float | None = setting(0.3, "area of the second largest face divided by that of the largest")
    min_face_side: float | None = setting(64, "side of the aligned face in px")
    max_text: float | None = setting(0.02, "share of the picture in boxes of text")
    max_watermark: float | None = setting(0.5, "confidence of a text that reads like a watermark")
    max_cartoon: float | None = setting(0.9, "likelihood of a drawn face")
    max_flat: float | None = setting(0.3, "share of pixels without any texture")
    rules: tuple[str, ...] = setting((), "further rules on any column, for example '[\"nsfw<=0.5\"]'")
    duplicates: int | None = setting(
        4, "largest number of bits, of 64, by which the hashes of near-duplicates differ", least=0, most=12
    )
    face_duplicates: int | None = setting(
        4, "the same for aligned faces, whose hashes survive cropping", least=0, most=12
    )
    top: int = setting(0, "keep only this number of pictures, those with the most pixels; 0: all", least=0)

    def __post_init__(self) -> None:
        check_bounds(self, "keep.")
        for text in self.rules:
            parse_rule(text)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Keeps rows whose `column` is at least (">=") or at most ("<=") `bound`, and rows without that figure."""

    name: str
    column: str
    side: Literal["<=", ">="]
    bound: float

    def drops(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Returns which of the values (N,) are dropped. NaN stands for a missing figure, which is not dropped."""
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
    """Parses a rule COLUMN<=NUMBER or COLUMN>=NUMBER. Raises ConfigError for any other text."""
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
    """Returns the columns of hashes by which duplicates are searched, each with the number of bits that may differ."""
    asked = {column: getattr(keep, name) for name, column in _HASHES.items()}
    return {column: bits for column, bits in asked.items() if bits is not None}


def active_rules(keep: KeepConfig, schema: pa.Schema) -> list[Rule]:
    """Returns the rules whose figures are columns of `schema`.

    Raises ConfigError if a setting that differs from its default needs a column that was not measured (hashes and
    `top` included), if a rule of `keep.rules` names no numeric column, or if there are too many rules.
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
    """Returns the names of all bits, from the lowest: one per rule, then UNMEASURED, DUPLICATE and RANK."""
    return [*(rule.name for rule in rules), UNMEASURED, DUPLICATE, RANK]


def reason_bits(rules: Sequence[Rule], table: pa.Table) -> NDArray[np.int64]:
    """Returns (N,): bit i is set if rule i drops the row, and the next bit if the row was not measured."""
    bits = np.zeros(len(table), np.int64)
    unmeasured = np.array([bool(reason) for reason in table["reason"].to_pylist()], bool)
    for number, rule in enumerate(rules):
        values = numbers(table, rule.column)
        bits |= np.int64(1 << number) * (rule.drops(values) & ~unmeasured)
    return bits | np.int64(1 << len(rules)) * unmeasured


def numbers(table: pa.Table, column: str) -> NDArray[np.float64]:
    """Returns a column as floats (N,), NaN for empty cells."""
    return table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)


def rank_bits(dropped: NDArray[np.bool_], pixels: NDArray[np.float64], top: int) -> NDArray[np.bool_]:
    """Returns which rows (N,) are not dropped yet and not among the `top` of these with the most pixels.

    Earlier rows win ties. `top` = 0 drops none.
    """
    kept = np.flatnonzero(~dropped)
    beyond = np.zeros(len(dropped), bool)
    if top and len(kept) > top:
        beyond[kept[np.argsort(-pixels[kept], kind="stable")[top:]]] = True
    return beyond


@dataclass(frozen=True)
class Overlap:
    """How R rules overlap. counts (R, R): rows that both rules drop. alone (R,): rows that only this rule drops."""

    names: list[str]
    counts: NDArray[np.int64]
    alone: NDArray[np.int64]


def overlaps(names: list[str], bits: NDArray[np.int64]) -> Overlap:
    """Counts how often two rules drop the same row. names: of the R bits. bits (N,): the reasons of every row."""
    masks = [(bits >> number) & 1 == 1 for number in range(len(names))]
    counts = np.array([[int((first & second).sum()) for second in masks] for first in masks], np.int64)
    alone = np.array([int((bits == 1 << number).sum()) for number in range(len(names))], np.int64)
    return Overlap(names, counts.reshape(len(names), len(names)), alone)


assert set(_SETTINGS) <= {f.name for f in fields(KeepConfig)}
