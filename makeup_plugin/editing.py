"""Pipelines that edit an existing picture: everywhere, or where a mask is white.

edit = FaceMakeUpInpaintPipeline.from_pipe(pipeline)
output = edit("a person with red hair", image="photo.jpg", mask_image="hair.png", generator=torch.manual_seed(0))
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from faceclip.errors import ConfigError
from makeup_plugin.arguments import check_flags
from makeup_plugin.calls.edit import Edit, read_edit
from makeup_plugin.calls.generate import generate
from makeup_plugin.calls.pictures import readable
from makeup_plugin.calls.request import Request
from makeup_plugin.output import FaceMakeUpOutput
from makeup_plugin.pipeline import FaceMakeUpPipeline
from makeup_plugin.references import Images
from makeup_plugin.saving.generic_loading import known_to_diffusers
from makeup_plugin.turns import call_in_turn


@known_to_diffusers
class FaceMakeUpImg2ImgPipeline(FaceMakeUpPipeline):
    """Redraws a picture by a prompt. Identity and pose stay, since both channels look at the face in that picture."""

    @torch.no_grad()
    @call_in_turn
    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str] | None = None,
        image: Images = None,
        *,
        strength: float = 0.6,
        reference_image: Images = None,
        **arguments: Any,
    ) -> FaceMakeUpOutput | tuple:
        """Edit `image` as `prompt` says.

        Args:
            prompt: one text or a list of texts, or None with prompt_embeds.
            image: the picture to edit, or a list of them: as `image` of `FaceMakeUpPipeline`.
            strength: how much of the noise is added, in (0, 1]. Less keeps more of the picture.
            reference_image: photo of the person whose face the result shall show, where that is not the one in `image`;
                `identity` says the same with a value. Pose, expression and light are those of `image` in any case,
                unless shading_image or shading_map is given. Where `image` shows no face, set shading_scale=0.
            arguments: those of `FaceMakeUpPipeline`. height and width are the picture's by default, reduced to
                multiples of the VAE's factor; reference_placement is "keep". landmarks are those of reference_image, or
                of `image` where there is none.

        Raises what `FaceMakeUpPipeline` raises.
        """
        urls = _urls_allowed(arguments)
        image = readable("image", image, allow_urls=urls)
        edit = read_edit(self, image, None, strength, height=arguments.get("height"), width=arguments.get("width"))
        return generate(self, _request(self, edit, prompt, reference_image, arguments), edit)


@known_to_diffusers
class FaceMakeUpInpaintPipeline(FaceMakeUpPipeline):
    """Draws a part of a picture anew. Outside of the mask the pixels stay exactly as they are."""

    @torch.no_grad()
    @call_in_turn
    def __call__(  # type: ignore[override]
        self,
        prompt: str | Sequence[str] | None = None,
        image: Images = None,
        mask_image: Images = None,
        *,
        strength: float = 1.0,
        reference_image: Images = None,
        **arguments: Any,
    ) -> FaceMakeUpOutput | tuple:
        """Edit `image` where `mask_image` is white.

        Args:
            mask_image: one mask or one per picture, of the picture's size. Its brightness is cut at one half.
            strength: as for `FaceMakeUpImg2ImgPipeline`. At 1 the masked part begins as pure noise.
            prompt, image, reference_image, arguments: as for `FaceMakeUpImg2ImgPipeline`.

        The watermark ends at the mask. The provenance records it only where it is still found.

        Raises what `FaceMakeUpPipeline` raises.
        """
        if mask_image is None:
            raise ConfigError("mask_image is missing: give a mask, or use FaceMakeUpImg2ImgPipeline")
        urls = _urls_allowed(arguments)
        image = readable("image", image, allow_urls=urls)
        mask_image = readable("mask_image", mask_image, allow_urls=urls)
        size = {"height": arguments.get("height"), "width": arguments.get("width")}
        edit = read_edit(self, image, mask_image, strength, **size)
        return generate(self, _request(self, edit, prompt, reference_image, arguments), edit)


def _request(
    pipeline: FaceMakeUpPipeline,
    edit: Edit,
    prompt: str | Sequence[str] | None,
    reference: Images,
    arguments: dict[str, Any],
) -> Request:
    """The request of a call that draws on `edit`: who the person is, and whose pose the result has."""
    if arguments.get("denoising_start") is not None:
        raise ConfigError(
            "denoising_start: an edit begins where strength says; give the latents of another model to"
            " FaceMakeUpPipeline, as latents="
        )
    pictures = list(edit.pictures)
    given = {**arguments, "height": edit.pictures.shape[1], "width": edit.pictures.shape[2]}
    if isinstance(prompt, str) and len(pictures) > 1:
        prompt = [prompt] * len(pictures)
    given["prompt"] = prompt
    given.setdefault("reference_placement", "keep")
    known = arguments.get("identity") is not None
    if known and reference is not None:
        raise ConfigError("identity and reference_image exclude each other: give one")
    if reference is None and not known:
        given["image"] = pictures
        given["landmarks"] = edit.move(arguments.get("landmarks"))
    else:
        given["image"] = readable("reference_image", reference, allow_urls=_urls_allowed(arguments))
        wants_map = pipeline.shading_channel is not None and arguments.get("shading_scale") != 0
        if wants_map and arguments.get("shading_image") is None and arguments.get("shading_map") is None:
            given["shading_image"] = pictures
            given["shading_landmarks"] = edit.move(arguments.get("shading_landmarks"))
    bound = inspect.signature(FaceMakeUpPipeline.__call__).bind(pipeline, **given)
    bound.apply_defaults()
    return Request(**{name: value for name, value in bound.arguments.items() if name != "self"})


def _urls_allowed(arguments: dict[str, Any]) -> bool:
    allowed = arguments.get("allow_urls", False)
    check_flags(allow_urls=allowed)
    return bool(allowed)
