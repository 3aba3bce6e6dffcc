"""Conditions of prompts and faces: runs the frozen encoders, whose outputs `build_conditions` assembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.towers.face import FaceFeatures
from makeup_plugin.conditioning import Conditions, TextSide, build_conditions
from makeup_plugin.image_tokens import FaceTower, image_tokens

if TYPE_CHECKING:
    from faceclip.joint import JointConditioning


@dataclass(frozen=True, kw_only=True)
class EncodedFaces:
    """What the frozen encoders know of the faces of B samples: made once, and given in place of the faces.

    features: of B rows; what rows without a face hold does not matter. image_tokens: (F,T,W) of the F rows with a face;
    None without an image tower. has_face: (B,) bool, at least one of them.
    """

    features: FaceFeatures
    image_tokens: Tensor | None
    has_face: Tensor


def encode_conditions(
    joint_encoder: TextSide,
    prompts: Sequence[str],
    faces: Tensor | None,
    *,
    height: int,
    width: int,
    image_encoder: FaceTower | None = None,
    has_face: Tensor | None = None,
    encoded: EncodedFaces | None = None,
    identity_dim: int | None = None,
    shading: Tensor | None = None,
    with_identity: bool | None = None,
    normalized: bool = True,
    nobody: Tensor | None = None,
) -> Conditions:
    """Conditions of B prompts and face crops.

    Args:
        joint_encoder: FaceCLIP, or plain text towers with a recognizer.
        prompts: B texts, without the template (the joint encoder adds it where there is a face).
        faces: (B,3,S,S) aligned RGB crops in [0,1], or None for text alone.
        height, width: size of the generated image, px.
        image_encoder: image tower of the identity channel. Without it the conditions hold no image tokens.
        has_face: (B,) bool. Rows without a face use the joint encoder's unconditional face (a zero image, no template)
            and zero identity. By default all rows have a face when `faces` is given.
        encoded: what the encoders know of the faces, in place of `faces` and `has_face`. Neither face encoder nor image
            tower run then.
        identity_dim: width of the identity embedding. It is needed only when no row has a face.
        shading: (B,3,height,width) in [0,1], or None.
        with_identity: whether the conditions hold an identity. By default they do where there is an image_encoder.
        normalized: bring the identity to length one.
        nobody: image tokens (T,W) of rows without a face; zero without it (see `image_tokens.nobody_tokens`).

    Raises ConfigError for sizes that do not fit together.
    """
    prompts = list(prompts)
    if encoded is not None:
        if faces is not None or has_face is not None:
            raise ConfigError("encoded stands in place of faces and has_face: give encoded alone, or these")
        present = _checked_mask("encoded.has_face", encoded.has_face, len(prompts))
        mask = None if bool(present.all()) else present
        joint = joint_encoder.encode(prompts, face_features=encoded.features, has_face=mask)
    else:
        present = _present_rows(faces, has_face, len(prompts))
        if not bool(present.any()):
            faces = None
        mask = None if faces is None or bool(present.all()) else present
        joint = joint_encoder.encode(prompts, faces, has_face=mask)
    identity = tokens = None
    if image_encoder is not None or with_identity:
        identity = _identities(joint, present, identity_dim)
    if image_encoder is not None:
        seen = encoded.image_tokens if encoded is not None else None
        if faces is not None:
            seen = image_tokens(image_encoder, faces[present.to(faces.device)])
        tokens = _face_tokens(joint, image_encoder, seen, present, nobody)
    return build_conditions(
        joint,
        height=height,
        width=width,
        identity=identity,
        image_tokens=tokens,
        shading=shading,
        normalized=normalized,
    )


def _present_rows(faces: Tensor | None, has_face: Tensor | None, count: int) -> Tensor:
    if faces is None:
        if has_face is not None and bool(has_face.any()):
            raise ConfigError("has_face names rows with a face but faces is None")
        return torch.zeros(count, dtype=torch.bool)
    if faces.shape[0] != count:
        raise ConfigError(f"{count} prompts need {count} face crops, got {faces.shape[0]}")
    return torch.ones(count, dtype=torch.bool) if has_face is None else _checked_mask("has_face", has_face, count)


def _checked_mask(name: str, mask: Tensor, count: int) -> Tensor:
    mask = mask.bool().cpu()
    if mask.shape != (count,):
        raise ConfigError(f"{name} must be ({count},), got {tuple(mask.shape)}")
    return mask


def _identities(joint: JointConditioning, present: Tensor, identity_dim: int | None) -> Tensor:
    """Identities (B,E), zero rows where there is no face."""
    if bool(present.any()):
        if joint.identity is None:
            raise ConfigError("faces are given, but nothing gives their identity: give a recognizer (face_encoder)")
        return joint.identity
    if identity_dim is None:
        raise ConfigError("without any face, identity_dim must be given to shape the identity channel's zero inputs")
    return torch.zeros(len(present), identity_dim, device=joint.tokens.device, dtype=joint.tokens.dtype)


def _face_tokens(
    joint: JointConditioning,
    image_encoder: FaceTower,
    seen: Tensor | None,
    present: Tensor,
    nobody: Tensor | None,
) -> Tensor:
    """Image tokens (B,T,W): `seen` (F,T,W) in the F rows with a face, those of `nobody`, or zeros, in the others."""
    device, dtype = joint.tokens.device, joint.tokens.dtype
    if seen is None:
        if bool(present.any()):
            raise ConfigError("encoded holds no image tokens, which the identity channel reads: encode with its tower")
        empty = nobody
        if empty is None:
            empty = torch.zeros_like(image_tokens(image_encoder, torch.zeros(1, 3, 64, 64, device=device))[0])
        return empty.to(device, dtype).repeat(len(present), 1, 1)
    tokens = torch.zeros(len(present), *seen.shape[1:], device=device, dtype=dtype)
    if nobody is not None:
        tokens += nobody.to(device, dtype)
    tokens[present.to(device)] = seen.to(dtype)
    return tokens
