"""The people of a call: their faces, and the shading maps of these faces."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from faceclip.errors import ConfigError
from makeup_plugin.calls.identify import check_identity
from makeup_plugin.calls.parts import PipelineParts
from makeup_plugin.calls.request import Call
from makeup_plugin.five_points import five_point_maps
from makeup_plugin.references import (
    References,
    fitted_shading,
    given_shading,
    identity_references,
    prepare_references,
)


def find_references(pipeline: PipelineParts, call: Call) -> References:
    """The face of each image or identity of the request, one per prompt, or several for one prompt."""
    image, landmarks = call.given.image, call.given.landmarks
    if call.given.identity is not None:
        return _given_people(pipeline, call)
    if image is None and landmarks is not None:
        raise ConfigError("landmarks belong to image: give image too, or leave landmarks out")
    several = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
    return prepare_references(
        image,
        count=None if several and len(call.prompts) == 1 else len(call.prompts),
        landmarks=landmarks,
        policy=call.given.face_policy,
        detector=pipeline.detector if image is not None and landmarks is None else pipeline._detector,
        known=pipeline.known_faces,
    )


def _given_people(pipeline: PipelineParts, call: Call) -> References:
    """One entry per prompt, or several for one prompt, of the request's identities."""
    identity, count = call.given.identity, len(call.prompts)
    if call.given.image is not None or call.given.landmarks is not None:
        raise ConfigError("identity and image exclude each other: give one (landmarks belong to image)")
    people = list(identity) if isinstance(identity, list | tuple) else [identity]
    if not people:
        raise ConfigError("identity is an empty list: give at least one identity, or None for text alone")
    if count > 1 and len(people) not in (1, count):
        raise ConfigError(f"identity: {len(people)} identities do not fit {count} prompts: give 1 or {count}")
    checked = [
        None if one is None else check_identity(pipeline, one, f"identity[{index}]" if len(people) > 1 else "identity")
        for index, one in enumerate(people)
    ]
    return identity_references(checked * count if len(checked) == 1 else checked)


def make_shading_maps(pipeline: PipelineParts, call: Call, references: References) -> Tensor | None:
    """Maps (N,3,height,width) in [0,1] for the references, or None where the shading channel does not run."""
    image, given_map, landmarks = call.given.shading_image, call.given.shading_map, call.given.shading_landmarks
    if image is not None and given_map is not None:
        raise ConfigError("shading_image and shading_map exclude each other: give one")
    if image is None and landmarks is not None:
        raise ConfigError("shading_landmarks belong to shading_image: give shading_image too, or leave them out")
    if call.edits is not None and (pipeline.shading_channel is None or given_map is not None):
        why = "shading_map is drawn as it is" if given_map is not None else "the pipeline has no shading_channel"
        raise ConfigError(f"pose, expression and light change the fitted face, and {why}: leave them out")
    if pipeline.shading_channel is None:
        if image is not None or given_map is not None:
            raise ConfigError(
                "this pipeline has no shading_channel: load one, or leave out shading_image and shading_map"
            )
        return None
    if call.shading_scale == 0:
        return None
    if given_map is not None:
        return given_shading(given_map, len(references), height=call.height, width=call.width)
    others = None
    if image is not None:
        others = prepare_references(
            image,
            count=len(references),
            landmarks=landmarks,
            policy=call.given.face_policy,
            detector=pipeline.detector if landmarks is None else pipeline._detector,
            what="shading_image",
            known=pipeline.known_faces,
        )
    elif not bool(references.has_face.any()):
        if call.edits is not None:
            raise ConfigError("pose, expression and light change the fitted face, and nobody is given: give image")
        return None
    if pipeline.config.control_map == "five_points":
        if call.edits is not None:
            raise ConfigError("pose, expression and light change a fit, and five points are none: leave them out")
        return five_point_maps(references, others, height=call.height, width=call.width)
    fitter = pipeline.fitter
    if fitter is None:
        raise ConfigError(
            "the shading channel needs a map and this pipeline has no face_fitter to make one: pass shading_map, "
            "install the extra photos, which fits photographs, or set shading_scale=0"
        )
    return fitted_shading(
        fitter,
        references,
        others,
        height=call.height,
        width=call.width,
        placement=call.placement,
        edits=call.edits,
        known=pipeline.known_faces,
    )
