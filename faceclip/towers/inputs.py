"""Checks of the joint encoder's inputs, with typed errors that name the argument and the remedy."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from faceclip.errors import ConfigError, UnreadableImageError
from faceclip.towers.face import FaceFeatures
from faceclip.towers.text import VOCABULARY_SIZE, tokenizer

logger = logging.getLogger(__name__)

_TOLD = 100  # tokens of a text that was not read, in a message
_ROUNDING = 1e-3  # how far resampling or 16-bit arithmetic may leave [0, 1]


def check_prompts(prompts: Any) -> list[str]:
    """Returns the prompts as a list. One text is a list of one.

    Raises:
        ConfigError: something that is not text, or nothing at all.
    """
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise ConfigError(f"prompts must be a list of texts, got {type(prompts).__name__}")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ConfigError(f"prompts[{number}] must be text, got {type(prompt).__name__}")
    if not prompts:
        raise ConfigError('prompts is empty: give at least one text ("" for none)')
    return list(prompts)


def check_tokens(tokens: Tensor, least: int, context: int) -> Tensor:
    """Returns token ids (B, L), L from `least` to `context`, as given.

    Raises:
        ConfigError: another shape or type, or, where the ids can be read without waiting for a device, an id outside
            the vocabulary.
    """
    if tokens.ndim != 2 or not least <= tokens.shape[1] <= context or len(tokens) == 0:
        raise ConfigError(f"token ids must have shape (B, {least} to {context}), got {tuple(tokens.shape)}")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ConfigError(f"token ids must be int64 or int32, got {tokens.dtype}")
    if tokens.device.type == "cpu" and not bool(((tokens >= 0) & (tokens < VOCABULARY_SIZE)).all()):
        raise ConfigError(f"token ids must lie in 0 … {VOCABULARY_SIZE - 1}: make them with text_tower.tokenize")
    return tokens


def check_faces(faces: Any) -> Tensor:
    """Returns aligned crops (B, 3, H, W), RGB in [0, 1], as given.

    Raises:
        UnreadableImageError: no tensor, or one of another shape, type or range. Reading the range waits for the device.
    """
    remedy = "faceclip.published.faces.published_faces makes such crops of pictures"
    if not isinstance(faces, Tensor):
        raise UnreadableImageError(f"faces must be a tensor (B, 3, H, W), got {type(faces).__name__}: {remedy}")
    if faces.ndim != 4 or faces.shape[1] != 3 or 0 in faces.shape:
        raise UnreadableImageError(f"faces must have shape (B, 3, H, W), got {tuple(faces.shape)}: {remedy}")
    if not faces.is_floating_point():
        raise UnreadableImageError(f"faces must be floating point in [0, 1], got {faces.dtype}: divide bytes by 255")
    if faces.is_meta:
        return faces
    low, high = (float(x) for x in faces.detach().aminmax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # false for NaN too
        raise UnreadableImageError(f"faces must be finite and in [0, 1], got values in [{low:g}, {high:g}]: {remedy}")
    return faces


def tell_cut(prompts: Sequence[str], tokens: Tensor) -> None:
    """Logs the words of `prompts`, tokenized to `tokens` (B, L), that do not fit into the L tokens."""
    length = tokens.shape[1]
    for row in torch.nonzero(tokens[:, -1]).flatten().tolist():
        ids = tokenizer().encode(prompts[row])
        if len(ids) + 2 > length:
            logger.warning(
                "prompt %d has more than %d tokens; not read: %r",
                row,
                length,
                tokenizer().decode(ids[length - 2 :][:_TOLD]).strip(),
            )


def check_features(features: Any, count: int, width: int, identity_dim: int) -> FaceFeatures:
    """Returns features of a face encoder with `count` tokens, as given.

    Raises:
        ConfigError: another type, other sizes, as of another face encoder, and on the CPU NaN or infinity. Reading the
            values elsewhere would wait for the device in every step; a trainer looks at the loss.
    """
    if not isinstance(features, FaceFeatures):
        raise ConfigError(f"face_features must be FaceFeatures, got {type(features).__name__}")
    tokens, identity = tuple(features.tokens.shape), tuple(features.identity.shape)
    if tokens[1:] != (count, width) or identity != (tokens[0], identity_dim):
        raise ConfigError(
            f"face_features must hold tokens (B, {count}, {width}) and identity (B, {identity_dim}), got {tokens} and "
            f"{identity}: were they made by another face encoder?"
        )
    for name, values in (("tokens", features.tokens), ("identity", features.identity)):
        if values.device.type == "cpu" and not _is_finite(values):
            raise ConfigError(f"face_features.{name} holds NaN or infinite numbers: encode these faces again")
    return features


def check_has_face(has_face: Any, count: int, *, given: bool) -> bool | Tensor:
    """Returns which of `count` rows have a face: (B,) bool as given, or one answer for all of them. given: whether
    there are faces or features of faces.

    Raises:
        ConfigError: another type or shape, and rows with a face where no faces are given.
    """
    if has_face is None:
        return given
    if not isinstance(has_face, Tensor) or has_face.dtype != torch.bool or tuple(has_face.shape) != (count,):
        found = f"{tuple(has_face.shape)} {has_face.dtype}" if isinstance(has_face, Tensor) else type(has_face).__name__
        raise ConfigError(f"has_face must be ({count},) bool, one entry per prompt, got {found}")
    if given:
        return has_face
    if bool(has_face.any()):
        raise ConfigError("has_face marks rows with a face, but there are neither faces nor face_features: give one")
    return False


def check_states(states: Any, tokens: Tensor, widths: Sequence[int]) -> Tensor:
    """Returns states of text towers of these widths for token ids (B, L), as given.

    Raises:
        ConfigError: another type or shape, and on the CPU NaN or infinity.
    """
    wanted = (*tokens.shape, sum(widths))
    if not isinstance(states, Tensor) or tuple(states.shape) != wanted:
        found = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise ConfigError(
            f"text_states must have shape {wanted}, got {found}: were they made of other prompts, or by another model?"
        )
    if states.device.type == "cpu" and not _is_finite(states):
        raise ConfigError("text_states holds NaN or infinite numbers: make them again")
    return states


def check_vectors(name: str, vectors: Any, width: int) -> Tensor:
    """Returns vectors (B, width) as given; raises ConfigError naming `name` for other shapes, types, NaN, infinity."""
    if not isinstance(vectors, Tensor) or vectors.ndim != 2 or vectors.shape[1] != width:
        found = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ConfigError(f"{name} must have shape (B, {width}), got {found}")
    if not _is_finite(vectors):
        raise ConfigError(f"{name} holds NaN or infinite numbers: leave out what could not be embedded")
    return vectors


def _is_finite(values: Tensor) -> bool:
    """Returns False for NaN and infinity, True without values or where reading them would split the graph."""
    return values.is_meta or torch.compiler.is_compiling() or bool(values.isfinite().all())
