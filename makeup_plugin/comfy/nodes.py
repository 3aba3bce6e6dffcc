"""The nodes: load a pipeline, encode a person, draw, save with provenance, and apply a person to a MODEL of ComfyUI.

Draw uses the pipeline's own base. Apply and Encode prompt bring the identity channel and the joint tokens to a MODEL
that ComfyUI has loaded. ComfyUI's API is pinned to v0_0_2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comfy_api.v0_0_2 import ComfyExtension, io, ui
from torch import Tensor

from makeup_plugin.comfy.patching import apply_identity, encode_prompt
from makeup_plugin.comfy.pictures import as_arrays, as_image, next_prefix
from makeup_plugin.identities import Identity
from makeup_plugin.loading import load_pipeline
from makeup_plugin.output import FaceMakeUpOutput
from makeup_plugin.pipeline import FaceMakeUpPipeline

CATEGORY = "Face-MakeUp"
LARGEST_SEED = 2**63 - 2**16
Pipeline = io.Custom("FACE_MAKEUP_PIPELINE")
Person = io.Custom("FACE_MAKEUP_IDENTITY")
Drawing = io.Custom("FACE_MAKEUP_DRAWING")


class LoadPipeline(io.ComfyNode):
    """A pipeline from a folder, a hub id, or the name of the one that ships."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FaceMakeUpLoadPipeline",
            display_name="Load Face-MakeUp pipeline",
            category=CATEGORY,
            description="Loads a FaceMakeUpPipeline: safetensors and JSON only, no code of the folder runs.",
            inputs=[
                io.String.Input("model", default="tiny", tooltip='A folder, a hub id, or "tiny".'),
                io.Combo.Input("device", options=["auto", "cpu", "cuda"], default="auto"),
                io.Combo.Input("dtype", options=["float32", "bfloat16", "float16"], default="float32"),
            ],
            outputs=[Pipeline.Output("pipeline", display_name="pipeline")],
        )

    @classmethod
    def execute(cls, model: str, device: str, dtype: Any) -> io.NodeOutput:
        pipeline = load_pipeline(model, device=device, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        return io.NodeOutput(pipeline)


class EncodeIdentity(io.ComfyNode):
    """One person from the photos of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FaceMakeUpEncodeIdentity",
            display_name="Encode identity",
            category=CATEGORY,
            description="One person from one photo or from a batch of photos of this person.",
            inputs=[
                Pipeline.Input("pipeline"),
                io.Image.Input("photos"),
                io.Combo.Input("face", options=["largest", "center", "only"], default="largest"),
            ],
            outputs=[
                Person.Output("identity", display_name="identity"),
                io.Image.Output("faces", display_name="faces that were found"),
            ],
        )

    @classmethod
    def execute(cls, pipeline: FaceMakeUpPipeline, photos: Tensor, face: str) -> io.NodeOutput:
        identity = pipeline.encode_identity(as_arrays(photos), face_policy=face)
        return io.NodeOutput(identity, torch.from_numpy(identity.crops).float() / 255)


class Draw(io.ComfyNode):
    """Pictures of the person that follow the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        scale = {"min": 0.0, "max": 2.0, "step": 0.05}
        return io.Schema(
            node_id="FaceMakeUpDraw",
            display_name="Draw with Face-MakeUp",
            category=CATEGORY,
            description="Steps, guidance, width and height of 0 are those of the model.",
            inputs=[
                Pipeline.Input("pipeline"),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, default="a smiling person"),
                io.String.Input("negative", multiline=True, dynamic_prompts=True, default=""),
                io.Int.Input("seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True),
                io.Int.Input("count", default=1, min=1, max=64, tooltip="Pictures; the seed grows by 1 for each."),
                io.Int.Input("steps", default=0, min=0, max=1000),
                io.Float.Input("guidance", default=0.0, min=0.0, max=30.0, step=0.1),
                io.Float.Input("identity_scale", default=1.0, **scale),
                io.Float.Input("shading_scale", default=1.0, **scale),
                io.Int.Input("width", default=0, min=0, max=4096, step=8),
                io.Int.Input("height", default=0, min=0, max=4096, step=8),
                Person.Input("identity", optional=True, tooltip="Without a person the prompt alone is drawn."),
                io.Image.Input("pose_photo", optional=True, tooltip="Gives pose, expression and light."),
                io.Image.Input("shading_map", optional=True, tooltip="A ready map in place of a fitted one."),
            ],
            outputs=[
                io.Image.Output("images", display_name="images"),
                io.Image.Output("maps", display_name="shading maps"),
                Drawing.Output("drawing", display_name="drawing"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        pipeline: FaceMakeUpPipeline,
        prompt: str,
        negative: str,
        seed: int,
        count: int,
        steps: int,
        guidance: float,
        identity_scale: float,
        shading_scale: float,
        width: int,
        height: int,
        identity: Identity | None = None,
        pose_photo: Tensor | None = None,
        shading_map: Tensor | None = None,
    ) -> io.NodeOutput:
        from comfy.model_management import throw_exception_if_processing_interrupted
        from comfy.utils import ProgressBar  # ComfyAPISync of v0_0_2 has no `execution` in some releases of ComfyUI

        bar = ProgressBar(1, node_id=cls.hidden.unique_id)

        def after_step(pipe: FaceMakeUpPipeline, index: int, timestep: Any, tensors: dict) -> dict:
            bar.update_absolute(index + 1, pipe.num_timesteps)
            throw_exception_if_processing_interrupted()
            return {}

        output: FaceMakeUpOutput = pipeline(  # type: ignore[assignment]  # a tuple is returned only on demand
            prompt,
            identity=identity,
            negative_prompt=negative,
            identity_scale=identity_scale if pipeline.identity_channel is not None else None,
            shading_scale=shading_scale if pipeline.shading_channel is not None else None,
            shading_image=None if pose_photo is None else as_arrays(pose_photo)[0],
            shading_map=None if shading_map is None else as_arrays(shading_map)[0],
            width=width or None,
            height=height or None,
            num_inference_steps=steps or None,
            guidance_scale=guidance or None,
            num_images_per_prompt=count,
            generator=[torch.Generator().manual_seed(seed + index) for index in range(count)],
            callback_on_step_end=after_step,
            output_type="pt",
        )
        pixels: Tensor = output.images  # type: ignore[assignment]  # by output_type
        images = pixels.float().cpu().permute(0, 2, 3, 1).contiguous()
        maps = torch.stack(
            [as_image(found, like=image) for found, image in zip(output.shading_maps, images, strict=True)]
        )
        return io.NodeOutput(images, maps, output)


class Save(io.ComfyNode):
    """PNG files with provenance in ComfyUI's output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FaceMakeUpSave",
            display_name="Save with provenance",
            category=CATEGORY,
            description="Unlike Save Image, this keeps the record that the pictures are generated, and no workflow.",
            inputs=[Drawing.Input("drawing"), io.String.Input("prefix", default="face-makeup")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, drawing: FaceMakeUpOutput, prefix: str) -> io.NodeOutput:
        import folder_paths  # of ComfyUI

        folder, name = next_prefix(Path(folder_paths.get_output_directory()), prefix)
        files = drawing.save(folder, prefix=name)
        subfolder = str(folder.relative_to(folder_paths.get_output_directory()))
        place = "" if subfolder == "." else subfolder
        return io.NodeOutput(
            ui=ui.SavedImages([ui.SavedResult(file.name, place, io.FolderType.output) for file in files])
        )


class Apply(io.ComfyNode):
    """The person in a MODEL that ComfyUI has loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        share = {"min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id="FaceMakeUpApply",
            display_name="Apply identity to MODEL",
            category=CATEGORY,
            description="Adds the pipeline's identity channel to a MODEL of the same base. LoRA and the shading channel"
            " of the pipeline stay behind.",
            inputs=[
                io.Model.Input("model"),
                Pipeline.Input("pipeline"),
                Person.Input("identity"),
                io.Float.Input("identity_scale", default=1.0, min=0.0, max=2.0, step=0.05),
                io.Float.Input("start", default=0.0, **share, tooltip="Share of the schedule from which it counts."),
                io.Float.Input("end", default=1.0, **share, tooltip="Share of the schedule up to which it counts."),
            ],
            outputs=[io.Model.Output("patched", display_name="model")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        pipeline: FaceMakeUpPipeline,
        identity: Identity,
        identity_scale: float,
        start: float,
        end: float,
    ) -> io.NodeOutput:
        return io.NodeOutput(apply_identity(model, pipeline, identity, scale=identity_scale, start=start, end=end))


class EncodePrompt(io.ComfyNode):
    """CONDITIONING by the pipeline's own text side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FaceMakeUpEncodePrompt",
            display_name="Encode prompt with Face-MakeUp",
            category=CATEGORY,
            description="A joint encoder puts the person into the tokens. For the negative prompt give no person.",
            inputs=[
                Pipeline.Input("pipeline"),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, default=""),
                Person.Input("identity", optional=True, tooltip="Without a person the text alone is encoded."),
            ],
            outputs=[io.Conditioning.Output("conditioning", display_name="conditioning")],
        )

    @classmethod
    def execute(cls, pipeline: FaceMakeUpPipeline, prompt: str, identity: Identity | None = None) -> io.NodeOutput:
        return io.NodeOutput(encode_prompt(pipeline, prompt, identity))


class FaceMakeUpExtension(ComfyExtension):
    """All nodes of this package."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadPipeline, EncodeIdentity, Draw, Save, Apply, EncodePrompt]
