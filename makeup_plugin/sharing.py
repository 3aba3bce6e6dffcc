"""Pipelines that share their components."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers import DiffusionPipeline

from faceclip.errors import ConfigError
from makeup_plugin.turns import give_turns

# What a pipeline knows beside its components.
_FACTS = ("base_model", "licence", "adapter_licence")


class PipelineSharingMixin:
    """`from_pipe` for a diffusers pipeline. It must stand before `DiffusionPipeline`."""

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, *, dtype: torch.dtype | None = None, **components: Any) -> Self:
        """A pipeline of this class that shares the components of another one, without copies.

        Base, licences, detector and settings go with them. Unlike diffusers' method, which moves everything to 32 bits
        unless told otherwise, this one leaves the precision alone.

        Args:
            pipeline: a FaceMakeUp pipeline, or one of diffusers that has unet, vae and scheduler.
            dtype: move all components, those of `pipeline` too, to this precision.
            components: take these instead, such as scheduler=, joint_encoder= or add_watermark=.

        Raises ConfigError for a component that the class does not know, and for one that nobody gives.
        """
        kind: Any = cls
        names, settings = kind._get_signature_keys(cls)
        unknown = [name for name in components if name not in (*names, *settings)]
        if unknown:
            raise ConfigError(
                f"from_pipe: {unknown[0]} is no component of {cls.__name__}; choose among {sorted(names)}"
            )
        known = {name: getattr(pipeline, name) for name in names if hasattr(pipeline, name)}
        known |= {name: pipeline.config[name] for name in settings if name in pipeline.config}
        parts = {**known, **components}
        needed = [name for name in names if parts.get(name) is None and name not in kind._optional_components]
        if needed:
            raise ConfigError(
                f"from_pipe: {type(pipeline).__name__} has no {needed[0]}, and {cls.__name__} needs it; give"
                f" {needed[0]}="
            )
        if turns := getattr(pipeline, "_turns", None):
            give_turns(parts["unet"], turns)
        shared = kind(**parts)
        for fact in _FACTS:
            setattr(shared, fact, getattr(pipeline, fact, ""))
        shared.whole_unet = getattr(pipeline, "whole_unet", False)
        shared.replaced_unet = getattr(pipeline, "replaced_unet", None)
        origin = pipeline.config.get("_name_or_path")
        if origin:
            shared.register_to_config(_name_or_path=origin)
            shared.base_model = shared.base_model or str(origin)
        shared._detector = getattr(pipeline, "_detector", None)
        return shared if dtype is None else shared.to(dtype=dtype)
