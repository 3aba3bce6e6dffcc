"""Several people in one picture: their identities, their regions, and the conditions of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faceclip.errors import ConfigError
from faceclip.faces import PreparedFace
from faceclip.towers.face import FaceFeatures
from makeup_plugin.arguments import texts_of
from makeup_plugin.calls.encode import conditions_of, with_given
from makeup_plugin.calls.identify import check_identity, identity_of_photos, stacked_features
from makeup_plugin.calls.parts import PipelineParts
from makeup_plugin.calls.request import Call
from makeup_plugin.conditioning import Conditions
from makeup_plugin.encoding import EncodedFaces
from makeup_plugin.five_points import draw_five_points, placed_points
from makeup_plugin.identities import Identity
from makeup_plugin.placement import Box, place_shading
from makeup_plugin.references import References, fit_of, given_shading
from makeup_plugin.regions import bounding_box, region_masks, shares, shrunk


@dataclass(frozen=True, kw_only=True)
class Group:
    """The K people of every picture of a call.

    masks: (K,height,width) in [0,1]. prompts: one text per person, None for that of the picture.
    """

    identities: list[Identity]
    masks: Tensor
    prompts: list[str] | None

    def __len__(self) -> int:
        return len(self.identities)

    @property
    def faces(self) -> list[PreparedFace | None]:
        """The face of each person."""
        return [identity.face for identity in self.identities]

    def references(self, pictures: int) -> References:
        """One entry per picture, all of which show people."""
        return References(faces=[None] * pictures, crops=None, has_face=torch.ones(pictures, dtype=torch.bool))


def find_group(pipeline: PipelineParts, call: Call) -> Group | None:
    """The people of a call with nested lists of photos or with regions; None where each picture shows one person.

    Raises ConfigError, which names the argument, for arguments that do not fit together.
    """
    given = call.given
    nested = isinstance(given.image, list | tuple) and any(isinstance(one, list | tuple) for one in given.image)
    if not nested and given.regions is None:
        if given.region_prompts is not None:
            raise ConfigError("region_prompts belong to several people: give regions, or image as a list of lists")
        return None
    if given.shading_image is not None:
        raise ConfigError("shading_image shows one person: for several people give shading_map")
    if call.edits is not None:
        raise ConfigError("pose, expression and light change one person: for several people give shading_map")
    if not isinstance(call.placement, str):
        raise ConfigError("reference_placement does not fit several people, whose faces go to their regions")
    people = _identities(pipeline, call, nested=nested)
    masks = region_masks(given.regions, len(people), call.height, call.width)
    prompts = None if given.region_prompts is None else texts_of("region_prompts", given.region_prompts)
    if prompts is not None and len(prompts) != len(people):
        raise ConfigError(f"region_prompts: {len(people)} people need as many texts, got {len(prompts)}")
    rows = call.identity_scale.rows
    if rows is not None and len(rows) != len(people):
        raise ConfigError(f"identity_scale: {len(people)} people need as many numbers, got {len(rows)}")
    return Group(identities=people, masks=masks, prompts=prompts)


def group_shading(pipeline: PipelineParts, call: Call, group: Group) -> Tensor | None:
    """Maps (N,3,height,width) in [0,1] for the call's prompts: each face in its region. None where the shading channel
    does not run."""
    count, height, width = len(call.prompts), call.height, call.width
    if pipeline.shading_channel is None or call.shading_scale == 0:
        if pipeline.shading_channel is None and call.given.shading_map is not None:
            raise ConfigError("this pipeline has no shading_channel: load one, or leave out shading_map")
        return None
    if call.given.shading_map is not None:
        return given_shading(call.given.shading_map, count, height=height, width=width)
    whole = torch.zeros(3, height, width)
    for identity, mask in zip(group.identities, group.masks, strict=True):
        whole += mask * _map_in(pipeline, identity, bounding_box(mask), height, width)
    return whole.clamp(max=1).repeat(count, 1, 1, 1)


def _map_in(pipeline: PipelineParts, identity: Identity, box: Box, height: int, width: int) -> Tensor:
    """The map (3,height,width) of one person in a box."""
    if pipeline.config.control_map == "five_points":
        left, top, right, bottom = box
        landmarks, size = identity.points
        points = placed_points(landmarks, size, bottom - top, right - left) + np.array([left, top])
        return torch.from_numpy(draw_five_points(points, height, width)).permute(2, 0, 1) / 255
    fitter = pipeline.fitter
    if fitter is None:
        raise ConfigError(
            "the shading channel needs a map and this pipeline has no face_fitter to draw one: pass shading_map, or set"
            " shading_scale=0"
        )
    fit, size = fit_of(identity)
    return place_shading(fitter, fit, size, box, height=height, width=width)


def encode_group(
    pipeline: PipelineParts,
    call: Call,
    group: Group,
    maps: Tensor | None,
    device: torch.device,
    *,
    nobody: Tensor | None = None,
) -> Conditions:
    """One row per prompt, each with the conditions of the K people: their faces and texts."""
    if call.texts is not None and group.prompts is None:
        raise ConfigError("prompt_embeds say nothing of single people: give region_prompts too")
    conditions = with_given(call, conditions_of(pipeline, call, call.prompts, None, maps, device, nobody=nobody))
    count, people = len(call.prompts), len(group)
    features = stacked_features([one.features for one in group.identities], device)
    tokens = [one.image_tokens for one in group.identities if one.image_tokens is not None]
    encoded = EncodedFaces(
        features=_repeated(features, count),
        image_tokens=torch.cat(tokens).to(device).repeat(count, 1, 1) if len(tokens) == people else None,
        has_face=torch.ones(count * people, dtype=torch.bool),
    )
    texts = [text for prompt in call.prompts for text in (group.prompts or [prompt] * people)]
    found = conditions_of(pipeline, call, texts, encoded, None, device, nobody=nobody)
    if conditions.tokens.shape[1] != found.tokens.shape[1]:
        raise ConfigError(
            f"prompt_embeds: the text has {conditions.tokens.shape[1]} tokens and those of the people"
            f" {found.tokens.shape[1]}: give as many"
        )
    size = [side // pipeline.vae_scale_factor for side in (call.height, call.width)]
    weights = shares(shrunk(group.masks, *size)).to(conditions.tokens)
    rows = call.identity_scale.rows or [1.0] * people

    def by_person(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.unflatten(0, (count, people))

    return replace(
        conditions,
        people_tokens=by_person(found.tokens),
        people_identity=by_person(found.identity),
        people_image_tokens=by_person(found.image_tokens),
        people_shares=weights.expand(count, -1, -1, -1),
        people_scale=conditions.tokens.new_tensor(rows).expand(count, -1),
    )


def _identities(pipeline: PipelineParts, call: Call, *, nested: bool) -> list[Identity]:
    given = call.given
    if given.identity is not None:
        if given.image is not None or given.landmarks is not None:
            raise ConfigError("identity and image exclude each other: give one (landmarks belong to image)")
        found = list(given.identity) if isinstance(given.identity, list | tuple) else [given.identity]
        if not found:
            raise ConfigError("identity is an empty list: give one identity per region")
        return [check_identity(pipeline, one, f"identity[{index}]") for index, one in enumerate(found)]
    photos = _people(given.image, nested=nested)
    landmarks: Sequence[Any] = [None] * len(photos)
    if given.landmarks is not None:
        landmarks = list(given.landmarks) if isinstance(given.landmarks, list | tuple | np.ndarray) else []
        if len(landmarks) != len(photos):
            raise ConfigError(f"landmarks: {len(photos)} people need as many lists of points, got {len(landmarks)}")
    return [
        identity_of_photos(
            pipeline, one, weights=None, landmarks=points, policy=given.face_policy, what=f"image[{index}]"
        )
        for index, (one, points) in enumerate(zip(photos, landmarks, strict=True))
    ]


def _people(image: Any, *, nested: bool) -> list[Any]:
    """The photos of each person."""
    if image is None:
        raise ConfigError("regions need people: give image as one list of photos per person, or identity as a list")
    several = isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.ndim == 4)
    people = list(image) if several else [image]
    for index, one in enumerate(people):
        if nested and not isinstance(one, list | tuple):
            raise ConfigError(f"image[{index}] must be a list of this person's photos, as other entries are")
        if one is None or (isinstance(one, list | tuple) and not one):
            raise ConfigError(f"image[{index}] is empty: a person in the picture needs at least one photo")
    if not people:
        raise ConfigError("image is an empty list: give one list of photos per person")
    return people


def _repeated(features: FaceFeatures, times: int) -> FaceFeatures:
    """The rows one after the other, `times` times."""
    return FaceFeatures(
        tokens=features.tokens.repeat(times, 1, 1),
        identity=features.identity.repeat(times, 1),
        second=None if features.second is None else _repeated(features.second, times),
    )
