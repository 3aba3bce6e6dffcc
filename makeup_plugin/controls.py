"""Further ControlNets of the base, beside the shading channel: they see pictures of the caller and the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel, MultiControlNetModel, UNet2DConditionModel
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.faces import load_image
from faceclip.faces.images import describe_source
from makeup_plugin.arguments import number
from makeup_plugin.conditioning import Conditions
from makeup_plugin.references import Images, as_list, resized
from makeup_plugin.shading import ShadingResiduals


@dataclass(frozen=True, kw_only=True)
class Control:
    """One ControlNet in a call: its pictures (N,3,H,W) in [0,1], its weight, and the shares of the steps between which
    it runs."""

    network: ControlNetModel
    pictures: Tensor
    scale: float
    start: float
    end: float

    def runs_at(self, index: int, steps: int) -> bool:
        """Whether it runs at this step, counted as in diffusers."""
        return self.scale != 0 and index / steps >= self.start and (index + 1) / steps <= self.end


def as_one(
    controlnet: ControlNetModel | MultiControlNetModel | Sequence[ControlNetModel] | None,
) -> ControlNetModel | MultiControlNetModel | None:
    """A list of ControlNets as diffusers' one module."""
    return MultiControlNetModel(list(controlnet)) if isinstance(controlnet, list | tuple) else controlnet


def networks_of(controlnet: ControlNetModel | MultiControlNetModel | None) -> list[ControlNetModel]:
    """The ControlNets of a component, which may be one, several or none."""
    if controlnet is None:
        return []
    return list(controlnet.nets) if isinstance(controlnet, MultiControlNetModel) else [controlnet]


def check_controlnet(controlnet: Any, unet: UNet2DConditionModel) -> None:
    """Raises ConfigError for what is no ControlNet, and for one of another base."""
    for network in networks_of(controlnet):
        if not isinstance(network, ControlNetModel):
            raise ConfigError(f"controlnet must be a ControlNetModel or a list of them, got {type(network).__name__}")
        _check_base("controlnet", network, unet, ("cross_attention_dim", "addition_embed_type", "in_channels"))


def check_shading_channel(channel: ControlNetModel, unet: UNet2DConditionModel) -> None:
    """Raises ConfigError for a shading channel of another base."""
    names = ("cross_attention_dim", "in_channels", "block_out_channels", "layers_per_block")
    _check_base("shading_channel", channel, unet, names)


def _check_base(part: str, network: Any, unet: UNet2DConditionModel, names: Sequence[str]) -> None:
    for name in names:
        theirs, ours = (_plain(one.config.get(name)) for one in (network, unet))
        if theirs != ours:
            raise ConfigError(
                f"{part}: its {name} is {theirs} and the UNet's {ours}: give one that was made for this base"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_controls(
    controlnet: ControlNetModel | MultiControlNetModel | None,
    images: Any,
    *,
    scale: float | Sequence[float],
    start: float | Sequence[float],
    end: float | Sequence[float],
    count: int,
    height: int,
    width: int,
) -> list[Control]:
    """The ControlNets of a call with their pictures, `count` of each at the size of the result; none without pictures.

    images: one picture, or one per image; for several ControlNets a list with an entry of this kind for each.

    Raises ConfigError, which names the argument, for numbers that do not fit, and UnreadableImageError.
    """
    networks = networks_of(controlnet)
    if images is None:
        return []
    if not networks:
        raise ConfigError("control_image: the pipeline has no controlnet; load one by from_pipe(pipeline, controlnet=)")
    given: list[Any] = [images] if len(networks) == 1 else as_list(images, "control_image")
    if len(given) != len(networks):
        raise ConfigError(
            f"control_image: {len(given)} entries do not fit {len(networks)} ControlNets: give a list with one for each"
        )
    scales = _each("controlnet_conditioning_scale", scale, len(networks))
    starts = _each("control_guidance_start", start, len(networks))
    ends = _each("control_guidance_end", end, len(networks))
    for first, last in zip(starts, ends, strict=True):
        if not 0 <= first < last <= 1:
            raise ConfigError(
                "control_guidance_start and control_guidance_end must satisfy 0 ≤ start < end ≤ 1, got"
                f" {first} and {last}"
            )
    return [
        Control(
            network=network, pictures=_pictures(pictures, count, height, width), scale=weight, start=first, end=last
        )
        for network, pictures, weight, first, last in zip(networks, given, scales, starts, ends, strict=True)
    ]


def control_residuals(
    controls: Sequence[Control], index: int, steps: int, latents: Tensor, timestep: Tensor, conditions: Conditions
) -> ShadingResiduals | None:
    """The sum of what the ControlNets that run at this step add to the UNet, or None."""
    total: ShadingResiduals | None = None
    for control in controls:
        if not control.runs_at(index, steps):
            continue
        pictures = control.pictures.to(latents.device, control.network.dtype)
        down, mid = control.network(
            latents,
            timestep,
            encoder_hidden_states=conditions.tokens,
            controlnet_cond=pictures.repeat(len(latents) // len(pictures), 1, 1, 1),
            conditioning_scale=control.scale,
            added_cond_kwargs=conditions.added,
            return_dict=False,
        )
        found = ShadingResiduals(down=list(down), mid=mid)
        total = found if total is None else total.plus(found)
    return total


def _pictures(images: Images, count: int, height: int, width: int) -> Tensor:
    sources = as_list(images, "control_image")
    if count % len(sources):
        raise ConfigError(f"control_image: {len(sources)} pictures do not fit {count} images: give one, or one each")
    found = []
    for index, source in enumerate(sources):
        if source is None:
            raise ConfigError(f"control_image {index} is None: give a picture")
        pixels = load_image(source, name=f"control_image {index} ({describe_source(source)})")
        found.append(torch.from_numpy(resized(pixels, height, width)).permute(2, 0, 1) / 255)
    return torch.stack(found).repeat_interleave(count // len(found), dim=0)


def _each(name: str, value: Any, count: int) -> list[float]:
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise ConfigError(f"{name}: {len(values)} values do not fit {count} ControlNets: give 1 or {count}")
    return [number(name, one) for one in values]
