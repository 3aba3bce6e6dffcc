"""The tab that edits a picture: everywhere, or where a visitor has painted."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from faceclip.errors import ConfigError
from makeup_plugin.app.painter import LARGEST_SEED, Order, Painter
from makeup_plugin.app.parts import Photos, enlarged, paths_of, photo_input, shown_errors


def add_edit_tab(painter: Painter) -> None:
    """Builds the tab within the page that is being built."""
    pipeline, limits, defaults = painter.pipeline, painter.limits, painter.pipeline.call_defaults
    shading = pipeline.shading_channel is not None

    def edit(
        canvas: dict[str, Any] | None,
        prompt: str | None,
        photos: Photos,
        strength: float,
        steps: float,
        guidance: float,
        seed: float | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how gradio passes it
    ) -> tuple[str, Image.Image | None, list[dict[str, Any]]]:
        with shown_errors():
            picture, mask = read_canvas(canvas)
            order = Order(
                prompt=prompt or "",
                photos=paths_of(photos),
                steps=int(steps),
                guidance=guidance,
                guide_shading=defaults.guide_shading,
                seed=int(seed or 0),
            )
            tick = lambda done, all_: progress((done, all_), desc="drawing", unit="steps")  # noqa: E731
            result = painter.edit(order, picture, mask, strength, tick)
        return str(result.files[0]), enlarged(result.shading_map), result.records

    with gr.Row():
        with gr.Column():
            canvas = gr.ImageEditor(
                label="Picture; paint over what is to change, or nothing for all of it",
                type="numpy",
                sources=["upload"],
                transforms=(),
                layers=False,
                brush=gr.Brush(colors=["#ff5500"], color_mode="fixed"),
                height=420,
                elem_id="canvas",
            )
            prompt = gr.Textbox(
                label="Prompt for the result",
                value="a person with red hair",
                max_length=limits.characters,
                elem_id="edit-prompt",
            )
            button = gr.Button("Edit", variant="primary", elem_id="edit")
            with gr.Row():
                strength = gr.Slider(0.05, 1, 0.8, step=0.05, label="Strength", elem_id="strength")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED)
            with gr.Accordion("More", open=False):
                photos = photo_input("Photos of another person whose face the result shall show", "edit-photos")
                with gr.Row():
                    steps = gr.Slider(1, limits.steps, defaults.num_inference_steps, step=1, label="Steps")
                    guidance = gr.Slider(1, 12, defaults.guidance_scale, step=0.1, label="Guidance")
        with gr.Column():
            # One picture, and whole: a gallery would fill its column with it and hide what is below. The file goes out
            # as it is, with its provenance.
            picture = gr.Image(
                label="Result",
                type="filepath",
                format="png",
                interactive=False,
                height=420,
                buttons=["download", "fullscreen"],
                elem_id="edited",
            )
            shading_map = gr.Image(label="Shading map", interactive=False, height=260, buttons=[], visible=shading)
            with gr.Accordion("Provenance", open=False):
                records = gr.JSON(label="Records")
    button.click(
        edit,
        [canvas, prompt, photos, strength, steps, guidance, seed],
        [picture, shading_map, records],
        api_visibility="private",
        concurrency_limit=1,
        concurrency_id="drawing",
        show_progress_on=picture,
    )


def read_canvas(canvas: dict[str, Any] | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """The picture (H,W,3) on a canvas, and where it was painted (H,W), or None where nothing was.

    Raises ConfigError for a canvas without a picture.
    """
    background = None if canvas is None else canvas["background"]
    if canvas is None or background is None or not background[..., 3:].any():
        raise ConfigError("picture: the canvas is empty, send a picture first")
    painted = [layer[..., 3] > 0 for layer in canvas["layers"]]
    mask = np.any(painted, axis=0) if painted else np.zeros(background.shape[:2], dtype=bool)
    return np.ascontiguousarray(background[..., :3]), mask if mask.any() else None
