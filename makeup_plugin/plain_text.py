"""The text side of a base model itself: CLIP text towers of transformers, and a recognizer beside them.

`PlainText` stands in the place of the joint encoder where the prompt does not know the person: published adapters for
Stable Diffusion 1.5 and SDXL put the person into the identity channel alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.utils.torch_utils import get_module_execution_device
from torch import Tensor, nn

from faceclip.cpu.inference import cpu_inference
from faceclip.errors import ConfigError
from faceclip.towers.face import FaceFeatures
from makeup_plugin.arguments import whole_number

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TextConditioning:
    """tokens (B,77,D). pooled (B,P), None for a base with one tower. identity (B,E) as the recognizer gives it, zero in
    rows without a face; None where no faces are given, or without a recognizer."""

    tokens: Tensor
    pooled: Tensor | None
    identity: Tensor | None


@dataclass(frozen=True, kw_only=True)
class PlainText:
    """Prompts → the context of a base's UNet, as diffusers' own pipelines make it.

    With one tower (SD 1.5) the tokens are its last states. With two (SDXL) they are the last states but one of both,
    side by side, and the second tower's projected text is the pooled vector.

    Args:
        tokenizers, towers: one or two of each, in the base's order.
        recognizer: aligned crops (B,3,H,W) in [0,1] → an object with `.identity` (B,E).
        silent: give zeros in place of every text, as SDXL wants it where no negative prompt is given.
        clip_skip: how many more layers to leave out at the towers' end, as diffusers' argument of that name.
    """

    tokenizers: Sequence[Any]
    towers: Sequence[nn.Module]
    recognizer: nn.Module | None = None
    silent: bool = False
    clip_skip: int | None = None

    def __post_init__(self) -> None:
        if len(self.tokenizers) != len(self.towers) or len(self.towers) not in (1, 2):
            raise ConfigError(
                f"a base has one text_encoder and tokenizer (SD 1.5) or two of each (SDXL), got {len(self.towers)} text"
                f" encoders and {len(self.tokenizers)} tokenizers"
            )

    def silenced(self) -> PlainText:
        """The same text side, which gives zeros for every text."""
        return replace(self, silent=True)

    @property
    def face_encoders(self) -> tuple[nn.Module, ...]:
        """The recognizer, if there is one."""
        return () if self.recognizer is None else (self.recognizer,)

    def face_features(self, faces: Tensor) -> FaceFeatures:
        """What the recognizer gives for aligned crops (B,3,H,W) RGB in [0,1]. Raises ConfigError without one."""
        if self.recognizer is None:
            raise ConfigError("faces are given, but nothing knows them: give the recognizer (face_encoder)")
        recognizer: Any = self.recognizer
        with cpu_inference(recognizer.pos_embed.device):
            return recognizer(faces.to(recognizer.pos_embed))

    def encode(
        self,
        prompts: Sequence[str],
        faces: Tensor | None = None,
        *,
        face_features: FaceFeatures | None = None,
        has_face: Tensor | None = None,
    ) -> TextConditioning:
        """Conditioning of B texts, and the identities of B aligned face crops (B,3,H,W) RGB in [0,1].

        face_features: what `face_features` gave, in place of `faces`. has_face: (B,) bool, the rows that have a face;
        by default all where faces are given. Texts beyond the towers' context are cut with a warning.
        """
        with cpu_inference(self.towers[0].device):
            tokens, pooled = self._text(list(prompts))
        if face_features is None and faces is not None and self.recognizer is not None:
            face_features = self.face_features(faces)
        identity = None
        if face_features is not None:
            identity = face_features.identity.to(tokens)
            if has_face is not None:
                identity = identity.masked_fill(~has_face.bool().to(identity.device)[:, None], 0.0)
        return TextConditioning(tokens=tokens, pooled=pooled, identity=identity)

    def _text(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        states, pooled = [], None
        for tokenizer, tower in zip(self.tokenizers, self.towers, strict=True):
            length = tokenizer.model_max_length
            ids = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            _tell_cut(tokenizer, prompts, length)
            output = tower(ids.input_ids.to(get_module_execution_device(tower)), output_hidden_states=True)
            states.append(self._states(tower, output))
            pooled = output.text_embeds if len(self.towers) == 2 and tower is self.towers[-1] else None
        tokens = torch.cat(states, dim=-1)
        if self.silent:
            return torch.zeros_like(tokens), None if pooled is None else torch.zeros_like(pooled)
        return tokens, pooled

    def _states(self, tower: Any, output: Any) -> Tensor:
        if len(self.towers) == 2:
            return output.hidden_states[-2 - (self.clip_skip or 0)]
        if self.clip_skip is None:
            return output.last_hidden_state
        norm = getattr(tower, "text_model", tower).final_layer_norm
        return norm(output.hidden_states[-1 - self.clip_skip])


def check_clip_skip(text_side: Any, value: Any) -> None:
    """Raises ConfigError for a text side other than `PlainText`, or a number of layers that its towers do not have."""
    if not isinstance(text_side, PlainText):
        raise ConfigError(
            "clip_skip: the joint encoder's fusion reads the last layer of its text towers; leave clip_skip out"
        )
    most = min(int(tower.config.num_hidden_layers) for tower in text_side.towers) - 1  # type: ignore[union-attr, arg-type]
    if not 0 <= whole_number("clip_skip", value) <= most:
        raise ConfigError(f"clip_skip must be a number from 0 to {most}, the layers that this base can do without")


def _tell_cut(tokenizer: Any, prompts: list[str], length: int) -> None:
    for prompt, ids in zip(prompts, tokenizer(prompts).input_ids, strict=True):
        if len(ids) > length:
            logger.warning("a prompt of %d tokens is cut to %d: %r", len(ids), length, prompt[:60])
