"""How much the identity channel counts: in all layers alike or block by block, per picture, and over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from faceclip.errors import ConfigError
from makeup_plugin.arguments import channel_scale, number
from makeup_plugin.identity import IdentityChannel

Blocks = Mapping[str, Any]
Schedule = Callable[[float], float] | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class IdentityScale:
    """A checked scale.

    layers: one weight per cross-attention layer of the channel. rows: how much each picture or person counts beside
    that, None for all alike. start, end: the shares of the steps between which the channel runs. schedule: factor of
    a step, by the share of the steps before it, or one factor per step. given: the argument, for the record.
    """

    layers: list[float]
    rows: list[float] | None
    start: float
    end: float
    schedule: Schedule | None
    given: Any

    def factors(self, steps: int) -> list[float]:
        """One factor per step. Raises ConfigError for a schedule that has not as many, or gives no numbers."""
        if self.schedule is None:
            found = [1.0] * steps
        elif callable(self.schedule):
            found = [number("identity_schedule", self.schedule(index / steps)) for index in range(steps)]
        elif len(self.schedule) != steps:
            raise ConfigError(
                f"identity_schedule: {steps} steps need as many factors, got {len(self.schedule)}: give one per step,"
                " or a function of the share of the steps that are done"
            )
        else:
            found = [number("identity_schedule", value) for value in self.schedule]
        # As diffusers' control_guidance_start and _end.
        return [
            0.0 if index / steps < self.start or (index + 1) / steps > self.end else factor
            for index, factor in enumerate(found)
        ]

    def record(self) -> dict[str, Any]:
        """What the provenance says of it."""
        found: dict[str, Any] = {"identity_scale": dict(self.given) if isinstance(self.given, Mapping) else self.given}
        if (self.start, self.end) != (0, 1):
            found |= {"identity_start": self.start, "identity_end": self.end}
        if self.schedule is not None:
            found["identity_schedule"] = "function" if callable(self.schedule) else list(self.schedule)
        return found


def check_identity_scale(
    channel: IdentityChannel | None,
    value: Any,
    default: float | None = None,
    *,
    start: Any = 0.0,
    end: Any = 1.0,
    schedule: Schedule | None = None,
) -> IdentityScale:
    """The scale that a call asks for. None means `default`, or 1, where the channel exists, and 0 where it does not.

    value: a number; or blocks as in diffusers' `set_ip_adapter_scale`, such as {"down": {"block_2": [0.0, 1.0]}, "up":
    0.5}, where blocks that are not named get 0; or a list of numbers, one per prompt or picture.

    Raises ConfigError, which names the argument, for impossible values, and for a scale other than 0 without a channel.
    """
    start, end = number("identity_start", start), number("identity_end", end)
    if not 0 <= start < end <= 1:
        raise ConfigError(
            f"identity_start={start:g} and identity_end={end:g} must be shares of the steps, 0 ≤ start < end ≤ 1"
        )
    plain = isinstance(schedule, Sequence) and not isinstance(schedule, str)
    if schedule is not None and not callable(schedule) and not plain:
        raise ConfigError(f"identity_schedule must be a function or a list of numbers, got {schedule!r}")
    count = 0 if channel is None else len(channel.config.layer_names)
    layers, rows = [1.0] * count, None
    if isinstance(value, Mapping) and channel is not None:
        layers = block_scales(value, channel.config.layer_names)
    elif isinstance(value, list | tuple):
        if not value:
            raise ConfigError("identity_scale is an empty list: give one number per picture, or one for all")
        rows = [number(f"identity_scale[{index}]", one) for index, one in enumerate(value)]
    elif not isinstance(value, Mapping):
        value = channel_scale("identity", channel, value, default)
        layers = [value] * count
    if channel is None:
        if isinstance(value, Mapping) or (rows is not None and any(rows)):
            raise ConfigError(f"identity_scale={value}, but the pipeline has no identity_channel: load one, or give 0")
        rows = None
    return IdentityScale(layers=layers, rows=rows, start=start, end=end, schedule=schedule, given=value)


def scale_steps(channel: IdentityChannel | None, scale: IdentityScale, steps: int) -> Callable[[int], None] | None:
    """Sets the channel's scale; and gives what sets it before each step, where steps differ."""
    if channel is None:
        return None
    channel.layer_scales = scale.layers
    factors = scale.factors(steps)
    if all(factor == 1 for factor in factors):
        return None

    def set_scale(index: int) -> None:
        channel.layer_scales = [factors[index] * layer for layer in scale.layers]

    return set_scale


def block_scales(blocks: Blocks, layers: Sequence[str]) -> list[float]:
    """One weight per layer name, from weights by block; 0 where nothing is named.

    "down", "mid" and "up" hold a number for the whole part, or numbers by "block_N", each a number or a list with one
    per attention of that block, as in diffusers. Raises ConfigError, which names the key, for what the UNet has not.
    """
    found = dict.fromkeys(layers, 0.0)
    for part, value in blocks.items():
        where = f"identity_scale[{part!r}]"
        inside = [
            name for name in layers if name.split(".")[0] == f"{part}_blocks" or name.split(".")[0] == f"{part}_block"
        ]
        if not isinstance(part, str) or not inside:
            raise ConfigError(f"{where}: this UNet has identity attention in {_parts(layers)}: name these")
        if not isinstance(value, Mapping):
            _fill(found, inside, value, where)
            continue
        for block, weight in value.items():
            index = str(block).removeprefix("block_")
            chosen = [name for name in inside if part != "mid" and name.split(".")[1] == index]
            if not str(block).startswith("block_") or not chosen:
                known = (
                    sorted({f"block_{name.split('.')[1]}" for name in inside})
                    if part != "mid"
                    else "no blocks: give a number"
                )
                raise ConfigError(f"{where}[{block!r}]: this UNet has identity attention in {known}")
            _fill(found, chosen, weight, f"{where}[{block!r}]")
    return list(found.values())


def _fill(found: dict[str, float], names: Sequence[str], value: Any, where: str) -> None:
    """Gives layers a weight, or each attention of a block its own."""
    if not isinstance(value, list | tuple):
        for name in names:
            found[name] = number(where, value)
        return
    attentions = sorted({_attention(name) for name in names})
    if len(value) != len(attentions) or len({name.split(".")[1] for name in names}) > 1:
        raise ConfigError(f"{where}: {len(attentions)} attentions need as many numbers, got {len(value)}")
    for name in names:
        found[name] = number(where, value[attentions.index(_attention(name))])


def _attention(name: str) -> int:
    parts = name.split(".")
    return int(parts[parts.index("attentions") + 1])


def _parts(layers: Sequence[str]) -> str:
    return ", ".join(sorted({name.split("_")[0] for name in layers}))
