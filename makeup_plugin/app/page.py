"""The page: what stands where, and which function each button calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from makeup_plugin.app.edit_tab import add_edit_tab
from makeup_plugin.app.painter import LARGEST_SEED, FacePolicy, Order, Painter
from makeup_plugin.app.parts import Photos, enlarged, paths_of, photo_input, shown_errors

# Fonts of the system: the page loads nothing from other servers.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
# Small results are enlarged to their frame, whole.
STYLE = (
    "#edited img { width: 100%; height: 100%; object-fit: contain; } "
    "#pictures .thumbnail-item { max-width: 290px; }"  # one picture would be as wide as the page's half, and cut off
)


def build_page(painter: Painter) -> gr.Blocks:
    """The page for one pipeline. Launch it by `launch_options`."""
    pipeline, limits = painter.pipeline, painter.limits
    defaults = pipeline.call_defaults
    start = [1.0 if scale is None else scale for scale in (defaults.identity_scale, defaults.shading_scale)]
    identity, shading = pipeline.identity_channel is not None, pipeline.shading_channel is not None

    def find(photos: Photos, policy: FacePolicy) -> Image.Image | None:
        with shown_errors():
            return painter.find_face(paths_of(photos)[0], policy) if photos else None

    def draw(
        prompt: str | None,
        negative: str | None,
        photos: Photos,
        policy: FacePolicy,
        pose: Photos,
        identity_scale: float,
        shading_scale: float,
        guide: bool,
        steps: float,
        guidance: float,
        count: float,
        seed: float | None,
        record: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how gradio passes it
    ) -> tuple[list[str], Image.Image | None, Image.Image | None, list[dict[str, Any]]]:
        with shown_errors():
            order = Order(
                prompt=prompt or "",
                negative_prompt=negative or "",  # gradio sends null for an empty field
                photos=paths_of(photos),
                pose_photo=next(iter(paths_of(pose)), None),
                face=policy,
                count=int(count),
                seed=int(seed or 0),
                steps=int(steps),
                guidance=guidance,
                guide_shading=guide,
                identity_scale=identity_scale if identity else None,
                shading_scale=shading_scale if shading else None,
                record_prompt=record,
            )
            result = painter.draw(order, lambda done, all_: progress((done, all_), desc="drawing", unit="steps"))
        return [str(file) for file in result.files], result.face, enlarged(result.shading_map), result.records

    with gr.Blocks(title="Face-MakeUp", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# Face-MakeUp\nPictures of the person in your photo that follow your words. {_about(painter)}")
        with gr.Tab("Draw"):
            with gr.Row():
                with gr.Column():
                    photos = photo_input("Photos of one person (without any the words alone are drawn)", "photos")
                    prompt = gr.Textbox(
                        label="Prompt",
                        value="a smiling person with red hair",
                        lines=2,
                        max_length=limits.characters,
                        elem_id="prompt",
                    )
                    button = gr.Button("Draw", variant="primary", elem_id="draw")
                    with gr.Row():
                        identity_scale = gr.Slider(0, 2, start[0], step=0.05, label="Identity", visible=identity)
                        shading_scale = gr.Slider(0, 2, start[1], step=0.05, label="Pose and light", visible=shading)
                    with gr.Row():
                        count = gr.Slider(1, limits.pictures, 1, step=1, label="Pictures", elem_id="count")
                        seed = gr.Number(
                            0,
                            label="Seed of the first picture",
                            precision=0,
                            minimum=0,
                            maximum=LARGEST_SEED,
                            elem_id="seed",
                        )
                    with gr.Accordion("More", open=False):
                        negative = gr.Textbox(label="What the picture should not show", max_length=limits.characters)
                        policy = gr.Radio(["largest", "center", "only"], value="largest", label="Which face of several")
                        pose = photo_input(
                            "Photo that gives pose, expression and light instead", "pose", visible=shading
                        )
                        with gr.Row():
                            steps = gr.Slider(1, limits.steps, defaults.num_inference_steps, step=1, label="Steps")
                            guidance = gr.Slider(1, 12, defaults.guidance_scale, step=0.1, label="Guidance")
                        guide = gr.Checkbox(defaults.guide_shading, label="Guide pose and light too", visible=shading)
                        record = gr.Checkbox(False, label="Write the prompt's text into the files, not only its hash")
                with gr.Column():
                    pictures = gr.Gallery(
                        label="Pictures",
                        format="png",
                        columns=2,
                        height=330,
                        object_fit="contain",
                        buttons=["download", "fullscreen"],
                        elem_id="pictures",
                    )
                    with gr.Row():
                        face = gr.Image(
                            label="Face that was found", interactive=False, height=260, buttons=[], elem_id="face"
                        )
                        shading_map = gr.Image(
                            label="Shading map",
                            interactive=False,
                            height=260,
                            buttons=[],
                            visible=shading,
                            elem_id="map",
                        )
                    with gr.Accordion("Provenance of each file", open=False):
                        records = gr.JSON(label="Records", elem_id="records")
            for event in (photos.change, policy.change):
                event(find, [photos, policy], face, api_visibility="private", show_progress="hidden")
            given = [prompt, negative, photos, policy, pose, identity_scale, shading_scale, guide, steps, guidance]
            gr.on(
                [button.click, prompt.submit],
                draw,
                [*given, count, seed, record],
                [pictures, face, shading_map, records],
                api_name="draw",
                concurrency_limit=1,
                concurrency_id="drawing",
                show_progress_on=pictures,
            )
        with gr.Tab("Edit"):
            add_edit_tab(painter)
    return page


def launch_options(*, upload_megabytes: int) -> dict[str, Any]:
    """Arguments of `gr.Blocks.launch` that keep the page to itself.

    Nothing on the server is readable except what a visitor has sent or drawn; there is no public link, no script from
    other servers, and uploads are limited.
    """
    return {
        "share": False,
        "allowed_paths": [],
        "max_file_size": upload_megabytes * 2**20,
        "strict_cors": True,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
        "run_history": False,
        "show_error": False,
        "footer_links": [],
        "theme": THEME,
        "css": STYLE,
    }


def _about(painter: Painter) -> str:
    pipeline = painter.pipeline
    name = Path(str(getattr(pipeline.config, "_name_or_path", None) or "unnamed")).name
    licence = f", licence: {pipeline.licence}" if pipeline.licence else ""
    marked = (
        "Files carry provenance and an invisible watermark."
        if pipeline.config.add_watermark
        else ("Files carry provenance.")
    )
    return f"{marked} Pipeline: {name}{licence}."
