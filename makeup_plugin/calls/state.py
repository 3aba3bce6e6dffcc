"""The state of the current call that diffusers' callbacks read and set."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel

from faceclip.errors import ConfigError
from makeup_plugin.arguments import number
from makeup_plugin.identity import IdentityChannel
from makeup_plugin.turns import Turns


class CallStateMixin:
    """For a pipeline whose calls set these attributes at their beginning."""

    unet: UNet2DConditionModel
    identity_channel: IdentityChannel | None
    _turns: Turns
    _guidance_scale: float = 1.0
    _guidance_rescale: float = 0.0
    _denoising_start: float | None = None
    _denoising_end: float | None = None
    _cross_attention_kwargs: dict[str, Any] | None = None
    _num_timesteps: int = 0
    _interrupt: bool = False

    @property
    def guidance_scale(self) -> float:
        """Guidance scale of the current call. Callbacks may read it."""
        return self._guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """`guidance_rescale` of the current call."""
        return self._guidance_rescale

    @property
    def denoising_start(self) -> float | None:
        """`denoising_start` of the current call."""
        return self._denoising_start

    @property
    def denoising_end(self) -> float | None:
        """`denoising_end` of the current call."""
        return self._denoising_end

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """`cross_attention_kwargs` of the current call."""
        return self._cross_attention_kwargs

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the current call also runs the unconditional half.

        A UNet that was distilled with its guidance scale (`time_cond_proj_dim`) does not need it.
        """
        return self._guidance_scale > 1 and self.unet.config.get("time_cond_proj_dim") is None

    @property
    def num_timesteps(self) -> int:
        """Number of denoising steps of the current call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """A callback may set `pipeline._interrupt = True` to stop early."""
        return self._interrupt

    def set_ip_adapter_scale(self, scale: float) -> None:
        """Weight of the identity channel from the next step on, for callbacks such as diffusers'
        `IPAdapterScaleCutoffCallback`.

        Raises ConfigError outside of a call, where the argument `identity_scale` sets it, and without a channel.
        """
        if self.identity_channel is None:
            raise ConfigError("set_ip_adapter_scale: the pipeline has no identity_channel; load one")
        if not self._turns.calling:
            raise ConfigError(
                "set_ip_adapter_scale is for callbacks during a call: give identity_scale= to the call instead"
            )
        self.identity_channel.scale = number("scale", scale)
