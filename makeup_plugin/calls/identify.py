"""Features of the faces in photos or of given identities; the pipeline remembers those of its last calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from numpy.typing import ArrayLike
from torch import Tensor, nn

from faceclip.errors import ConfigError
from faceclip.face3d.frames import FaceFit
from faceclip.faces import PreparedFace
from faceclip.storage.hashes import bytes_hash
from faceclip.towers.face import FaceFeatures
from makeup_plugin.calls.parts import PipelineParts
from makeup_plugin.encoding import EncodedFaces
from makeup_plugin.identities import (
    Identity,
    PhotoReport,
    average,
    average_features,
    average_fit,
    check_weights,
    outliers,
    similarities,
)
from makeup_plugin.image_tokens import image_tokens
from makeup_plugin.known_faces import network_hash, picture_key
from makeup_plugin.references import Images, References, fit_faces, prepare_references
from makeup_plugin.views import tower_view

logger = logging.get_logger(__name__)


def identity_of_photos(
    pipeline: PipelineParts,
    images: Images,
    *,
    weights: Sequence[float] | None,
    landmarks: Sequence[ArrayLike | None] | ArrayLike | None,
    policy: str,
    what: str = "images",
) -> Identity:
    """`encode_identity` of the pipeline; what: the caller's name for the argument `images`, used in messages."""
    references = prepare_references(
        images,
        landmarks=landmarks,
        policy=policy,
        detector=pipeline.detector if landmarks is None else pipeline._detector,
        what=what,
        known=pipeline.known_faces,
    )
    faces = [face for face in references.faces if face is not None]
    if len(faces) != len(references):
        index = references.has_face.tolist().index(False)
        raise ConfigError(f"{what} {index} is None: an identity needs a photo of the person in every place")
    shares = check_weights(weights, len(faces), what)
    encoded = encode_faces(pipeline, references, pipeline._execution_device)
    if encoded is None:
        raise ConfigError(f"{what} shows nobody: give at least one photo")
    rows = [_row(encoded.features, row) for row in range(len(faces))]
    alike = similarities(torch.cat([row.identity for row in rows]), shares)
    leader = shares.index(max(shares))
    fit = None
    if (fitter := pipeline.fitter) is not None:
        fits = fit_faces(fitter, faces, pipeline.known_faces)
        fit = average_fit([_plain_fit(fits.rows(slice(row, row + 1))) for row in range(len(faces))], shares, leader)
    tokens = None if encoded.image_tokens is None else _plain(encoded.image_tokens)
    reports = [
        _report(face, share, similarity, outlier)
        for face, share, similarity, outlier in zip(faces, shares, alike, outliers(alike), strict=True)
    ]
    wrong = [f"{what} {index}" for index, photo in enumerate(reports) if photo.outlier]
    if wrong:
        logger.warning("%s: another person than in the other photos? Leave them out, or give them less weight", wrong)
    return Identity(
        features=average_features(rows, shares),
        image_tokens=None if tokens is None else average(tokens.split(1), shares),
        fit=fit,
        photo_size=None if fit is None else _size(faces[leader]),
        crops=np.stack([face.crop for face in faces]),
        photos=tuple(reports),
        recognizer=recognizer_hash(pipeline),
        image_tower=None if tokens is None else image_tower_hash(pipeline),
    )


def encode_faces(
    pipeline: PipelineParts, references: References, device: torch.device, *, for_channel: bool = True
) -> EncodedFaces | None:
    """Features of the references, from memory if the encoders have seen them; None if no reference shows a face.

    for_channel: whether the identity channel will read it. Otherwise its image tower does not run.
    """
    if not bool(references.has_face.any()):
        return None
    if references.identities:
        return _encoded_identities(pipeline, references, device)
    for_channel = for_channel and _reads_image(pipeline)
    side, tower, known = pipeline.text_side, pipeline.image_encoder, pipeline.known_faces
    present = references.has_face
    key = (str(device), *(None if face is None else bytes_hash(face.crop) for face in references.faces))
    view = _view(pipeline)

    def features() -> FaceFeatures:
        return side.face_features(_crops(references, device))

    def tokens() -> Tensor:
        if view == "aligned":
            return image_tokens(tower, _crops(references, device)[present.to(device)])
        faces = [face for face in references.faces if face is not None]
        size = int(tower.config.image_size)
        return image_tokens(tower, torch.stack([tower_view(face, view, size) for face in faces]).to(device))

    seen = key if view == "aligned" else (*key, view, *_picture_keys(references))
    return EncodedFaces(
        features=known.recall("features", key, features, by=_face_network(pipeline)),
        image_tokens=known.recall("image_tokens", seen, tokens, by=tower) if for_channel else None,
        has_face=present,
    )


def check_identity(pipeline: PipelineParts, identity: Any, name: str) -> Identity:
    """The identity as given. Raises ConfigError, which names the argument, for anything that this pipeline's networks
    did not make."""
    if not isinstance(identity, Identity):
        raise ConfigError(
            f"{name} must be an Identity, got {type(identity).__name__}: pipeline.encode_identity makes one of photos,"
            " and Identity.load reads a file"
        )
    if identity.recognizer != recognizer_hash(pipeline):
        raise ConfigError(
            f"{name} was made by another recognizer than this pipeline's (or by the same in another precision): make it"
            " by this pipeline's encode_identity"
        )
    if _reads_image(pipeline):
        if identity.image_tower is None:
            raise ConfigError(
                f"{name} holds no image tokens, which the identity channel reads: make it by this pipeline's"
                " encode_identity"
            )
        if identity.image_tower != image_tower_hash(pipeline):
            raise ConfigError(
                f"{name} was made by another image tower than this pipeline's: make it by this pipeline's"
                " encode_identity"
            )
    if identity.fit is not None and pipeline.fitter is not None:
        for part, size in getattr(pipeline.fitter, "coefficients", {}).items():
            if (found := getattr(identity.fit, part).shape[1]) != size:
                raise ConfigError(
                    f"{name}: its head has {found} coefficients of {part} and this pipeline's fitter {size}: make it by"
                    " this pipeline's encode_identity"
                )
    return identity


def recognizer_hash(pipeline: PipelineParts) -> str:
    """The hash of the face encoders, computed again only when their weights change."""
    side = pipeline.text_side

    def make() -> str:
        return bytes_hash(*(network_hash(encoder).encode() for encoder in side.face_encoders))

    return pipeline.known_faces.recall("recognizer", "hash", make, by=_face_network(pipeline))


def image_tower_hash(pipeline: PipelineParts) -> str:
    """The hash of the image tower, computed again only when its weights change."""
    tower, view = pipeline.image_encoder, _view(pipeline)

    def make() -> str:
        return network_hash(tower) if view == "aligned" else bytes_hash(network_hash(tower).encode(), view.encode())

    return pipeline.known_faces.recall("image_tower", f"hash {view}", make, by=tower)


def _encoded_identities(pipeline: PipelineParts, references: References, device: torch.device) -> EncodedFaces:
    given = references.identities
    people = [one for one in given if one is not None]
    filler = people[0]  # what rows without a face hold does not matter
    tokens = [one.image_tokens for one in people if one.image_tokens is not None]
    return EncodedFaces(
        features=stacked_features([(one or filler).features for one in given], device),
        image_tokens=torch.cat(tokens).to(device) if _reads_image(pipeline) else None,
        has_face=references.has_face,
    )


def _view(pipeline: PipelineParts) -> str:
    """The part of a photo that the image tower reads."""
    channel = pipeline.identity_channel
    return "aligned" if channel is None else channel.config.view


def _picture_keys(references: References) -> list[str]:
    faces = [face for face in references.faces if face is not None]
    return [picture_key(face.image, face.face.landmarks.tobytes()) for face in faces]


def _face_network(pipeline: PipelineParts) -> nn.Module:
    """The part that encodes faces. Raises ConfigError for a pipeline without one."""
    network = pipeline.joint_encoder if pipeline.joint_encoder is not None else pipeline.face_encoder
    if network is None:
        raise ConfigError("image: this pipeline has nothing that knows faces; give it joint_encoder or face_encoder")
    return network


def _reads_image(pipeline: PipelineParts) -> bool:
    """Whether the identity channel reads image tokens."""
    return pipeline.identity_channel is not None and pipeline.identity_channel.reads_image


def stacked_features(rows: Sequence[FaceFeatures], device: torch.device) -> FaceFeatures:
    """Features of one row each as one batch on a device."""
    seconds = [row.second for row in rows if row.second is not None]
    return FaceFeatures(
        tokens=torch.cat([row.tokens for row in rows]).to(device),
        identity=torch.cat([row.identity for row in rows]).to(device),
        second=stacked_features(seconds, device) if seconds else None,
    )


def _crops(references: References, device: torch.device) -> Tensor:
    if references.crops is None:
        raise ConfigError("these references hold no crops: nobody has a face")
    return references.crops.to(device)


def _row(features: FaceFeatures, row: int) -> FaceFeatures:
    return FaceFeatures(
        tokens=_plain(features.tokens[row : row + 1]),
        identity=_plain(features.identity[row : row + 1]),
        second=None if features.second is None else _row(features.second, row),
    )


def _plain(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32, copy=True)


def _plain_fit(fit: FaceFit) -> FaceFit:
    return FaceFit(**{name: _plain(value) for name, value in vars(fit).items()})


def _size(face: PreparedFace) -> tuple[int, int]:
    return face.image.shape[0], face.image.shape[1]


def _report(face: PreparedFace, share: float, similarity: float | None, outlier: bool) -> PhotoReport:
    points = tuple((float(x), float(y)) for x, y in face.face.landmarks)
    return PhotoReport(weight=share, similarity=similarity, outlier=outlier, size=_size(face), landmarks=points)
