"""Checks of components that `PipelineQuantizationConfig` quantized while they were loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from faceclip.errors import ConfigError

# Their forward passes go through kernels of their own, or inside another network's, which read plain weights.
_PLAIN = ("joint_encoder", "face_encoder", "face_fitter", "identity_channel")
_OTHERS = "unet, shading_channel, controlnet, image_encoder and vae can be"


def named_components(config: Any) -> set[str]:
    """The components that a `PipelineQuantizationConfig` names."""
    return {*(getattr(config, "quant_mapping", None) or ()), *(getattr(config, "components_to_quantize", None) or ())}


def check_quantization(config: Any) -> None:
    """Raises ConfigError for a `PipelineQuantizationConfig` that names a component which cannot be quantized, and for
    one that names none, which to diffusers means all."""
    if config is None:
        return
    named = named_components(config)
    if not named:
        raise ConfigError(
            "quantization_config names no component, which means all of them: name some by components_to_quantize= or"
            f" quant_mapping= ({_OTHERS})"
        )
    for name in _PLAIN:
        if name in named:
            raise ConfigError(f"quantization_config: {name} cannot be quantized; leave it out ({_OTHERS})")


def check_plain(parts: Mapping[str, Any]) -> None:
    """Raises ConfigError for a component that is quantized and cannot be, as diffusers' own loader leaves it."""
    for name in _PLAIN:
        if is_quantized(parts.get(name)):
            raise ConfigError(
                f"{name} is quantized and cannot be: leave it out of quantization_config, or give it as it was saved"
                f" ({_OTHERS})"
            )


def is_quantized(part: Any) -> bool:
    """Whether a quantizer of diffusers made the component's weights."""
    return getattr(part, "hf_quantizer", None) is not None


def check_unquantized(parts: Mapping[str, Any]) -> None:
    """Raises ConfigError for a component that cannot be saved: its weights are no longer those of its class."""
    for name, part in parts.items():
        if is_quantized(part):
            raise ConfigError(
                f"{name} is quantized and cannot be saved with the pipeline: save the pipeline that was loaded without"
                " quantization_config, and quantize after loading"
            )


def check_plain_unet(unet: Any, lora: Path) -> None:
    """Raises ConfigError for a quantized UNet to which a saved LoRA would have to be added."""
    if is_quantized(unet):
        raise ConfigError(
            f"quantization_config: {lora} belongs on the UNet's own weights, and they would be quantized before; leave"
            " unet out of the quantization, or save a pipeline whose LoRA is merged into the UNet"
        )
