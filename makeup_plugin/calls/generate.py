"""A call from the request to the pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from makeup_plugin.arguments import check_flags, check_generator
from makeup_plugin.callbacks import callback_after_step, in_order
from makeup_plugin.calls.edit import Edit, EditLatents, encode_edit, steps_from
from makeup_plugin.calls.encode import complete_conditions, encode_references, initial_latents, tokens_of_nobody
from makeup_plugin.calls.failures import parts_named
from makeup_plugin.calls.group import encode_group, find_group, group_shading
from makeup_plugin.calls.parts import PipelineParts
from makeup_plugin.calls.people import find_references, make_shading_maps
from makeup_plugin.calls.pictures import with_pictures
from makeup_plugin.calls.request import Call, Request, check_request
from makeup_plugin.conditioning import Conditions
from makeup_plugin.controls import control_residuals, read_controls
from makeup_plugin.marking import watermark as watermarking
from makeup_plugin.marking.provenance import Provenance, make_records
from makeup_plugin.output import FaceMakeUpOutput
from makeup_plugin.references import References, shading_pictures
from makeup_plugin.regional_attention import regional_attention
from makeup_plugin.sampling import (
    decode,
    denoise,
    guidance_embedding,
    make_timesteps,
    seeds_of,
    steps_after,
    steps_until,
)
from makeup_plugin.scales import scale_steps


@parts_named
def generate(pipeline: PipelineParts, request: Request, edit: Edit | None = None) -> FaceMakeUpOutput | tuple:
    """Check the arguments, find the faces, make conditions and latents, denoise, decode, and describe the result.

    edit: the picture that the result changes.
    """
    switches = {name: getattr(request, name) for name in ("return_dict", "allow_urls", "record_prompt")}
    check_flags(**switches, **({} if request.watermark is None else {"watermark": request.watermark}))
    request = with_pictures(request)
    call = check_request(pipeline, request)
    begin(pipeline, call)
    device = pipeline._execution_device

    nobody = tokens_of_nobody(pipeline)
    group = find_group(pipeline, call)
    if group is None:
        references = find_references(pipeline, call)
        call = call.for_people(len(references))
        maps = make_shading_maps(pipeline, call, references)
        conditions = encode_references(pipeline, call, references, maps, device, nobody=nobody)
    else:
        call = call.for_people(1)
        references = group.references(len(call.prompts))
        maps = group_shading(pipeline, call, group)
        conditions = encode_group(pipeline, call, group, maps, device, nobody=nobody)
    shading_maps = shading_pictures(conditions.shading, conditions.shading_keep, len(call.prompts))
    conditions = complete_conditions(pipeline, call, conditions, nobody=nobody)

    edited = None
    if edit is not None:
        edit = edit.rows(call.count)
        check_generator(request.generator, call.count)
        edited = encode_edit(pipeline, edit, device, request.generator)
    latents = initial_latents(pipeline, call, device)
    pipeline.evict_models()
    regional = (pipeline.unet, pipeline.shading_channel) if conditions.by_regions else ()
    with regional_attention(*regional):
        latents = run_steps(pipeline, call, latents, conditions, edited)

    output_type, watermark = request.output_type, request.watermark
    marked = (pipeline.config.add_watermark if watermark is None else watermark) and output_type != "latent"
    images = latents
    pipeline.evict_models()
    if output_type != "latent":
        images = decode(
            pipeline.vae,
            pipeline.image_processor,
            latents,
            output_type=output_type,
            marked=marked,
            finish=None if edit is None else edit.paste,
        )
    pipeline.maybe_free_model_hooks()

    faces = call.each(references.faces if group is None else [group.faces] * len(call.prompts))
    if not request.return_dict:
        return images, faces
    records = describe(pipeline, call, references, marked=marked, strength=None if edit is None else edit.strength)
    output = FaceMakeUpOutput(images=images, faces=faces, shading_maps=call.each(shading_maps), provenance=records)
    if marked and edit is not None and edit.mask is not None:
        output.provenance = still_marked(output)
    return output


def begin(pipeline: PipelineParts, call: Call) -> None:
    """Sets the attributes that callbacks may read."""
    pipeline._guidance_scale = call.guidance_scale
    pipeline._guidance_rescale = call.given.guidance_rescale
    pipeline._denoising_start = call.given.denoising_start
    pipeline._denoising_end = call.given.denoising_end
    pipeline._cross_attention_kwargs = call.given.cross_attention_kwargs
    pipeline._interrupt = False


def run_steps(
    pipeline: PipelineParts, call: Call, latents: Tensor, conditions: Conditions, edited: EditLatents | None = None
) -> Tensor:
    """The denoising steps of the call from noise `latents`, with its callback and the pipeline's progress bar."""
    if pipeline.identity_channel is not None:
        pipeline.identity_channel.shortcut_scale = call.shortcut_scale
    given = call.given
    timesteps = make_timesteps(
        pipeline.scheduler, call.steps, latents.device, timesteps=given.timesteps, sigmas=given.sigmas
    )
    if given.denoising_end is not None:
        timesteps = steps_until(pipeline.scheduler, timesteps, given.denoising_end)
    hooks = []
    steps = call.steps if given.timesteps is None and given.sigmas is None else len(timesteps)
    if given.denoising_start is not None:
        timesteps = steps_after(pipeline.scheduler, timesteps, given.denoising_start)
    if edited is not None:
        timesteps = steps_from(pipeline.scheduler, timesteps, steps, edited.strength)
        if edited.mask is not None:
            hooks.append(edited.blend(pipeline.scheduler, latents, timesteps))
        if not edited.from_noise:
            latents = edited.noised(pipeline.scheduler, latents, timesteps[:1])
    controls = read_controls(
        pipeline.controlnet,
        given.control_image,
        scale=given.controlnet_conditioning_scale,
        start=given.control_guidance_start,
        end=given.control_guidance_end,
        count=len(latents),
        height=call.height,
        width=call.width,
    )
    pipeline._num_timesteps = count = len(timesteps)
    if given.callback_on_step_end is not None:
        hooks.append(callback_after_step(pipeline, given.callback_on_step_end, call.callback_inputs))
    return denoise(
        pipeline.unet,
        pipeline.scheduler,
        latents,
        conditions,
        timesteps=pipeline.progress_bar(timesteps),
        guidance_scale=call.guidance_scale if call.guided else 1.0,
        guidance_rescale=given.guidance_rescale,
        eta=given.eta,
        timestep_cond=guidance_embedding(call.guidance_scale, len(latents), pipeline.unet),
        cross_attention_kwargs=given.cross_attention_kwargs,
        identity_channel=pipeline.identity_channel,
        shading_channel=pipeline.shading_channel,
        shading_scale=call.shading_scale,
        residuals=(lambda index, *inputs: control_residuals(controls, index, count, *inputs)) if controls else None,
        started=given.denoising_start is not None or (edited is not None and not edited.from_noise),
        generator=given.generator,
        before_step=scale_steps(pipeline.identity_channel, call.identity_scale, len(timesteps)),
        after_step=in_order(hooks) if hooks else None,
        interrupted=lambda: pipeline.interrupt,
    )


def describe(
    pipeline: PipelineParts, call: Call, references: References, *, marked: bool, strength: float | None
) -> list[Provenance]:
    """The provenance of each image. `strength`: of an edit."""
    settings = {
        "num_inference_steps": call.steps,
        "guidance_scale": call.guidance_scale,
        "guide_shading": call.guide_shading,
        **call.identity_scale.record(),
        "shading_scale": call.shading_scale,
        "height": call.height,
        "width": call.width,
    }
    if strength is not None:
        settings["strength"] = strength
    return make_records(
        model=str(getattr(pipeline.config, "_name_or_path", None) or "unnamed"),
        prompts=call.each(call.prompts),
        has_face=call.each(references.has_face.tolist()),
        seeds=seeds_of(call.given.generator, call.count),
        watermark=watermarking.METHOD if marked else None,
        settings=settings,
        record_prompt=call.given.record_prompt,
    )


def still_marked(output: FaceMakeUpOutput) -> list[Provenance]:
    """The records of edited images, which name the watermark only where it is found: outside of the mask it is gone."""
    return [
        replace(record, watermark=watermarking.METHOD if watermarking.detect(np.asarray(image) / 255) else None)
        for record, image in zip(output.provenance, output.pil_images(), strict=True)
    ]
