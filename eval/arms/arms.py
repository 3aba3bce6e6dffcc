"""Draws the pictures of an arm with the pipeline. Pictures that exist already are reused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eval.arms.plan import Arm, Job, batches
from eval.reports.report import write_json
from faceclip.data.arrays import FaceArrays
from faceclip.errors import ConfigError
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.marking.provenance import save_image
from makeup_plugin.references import fitted_shading, prepare_references, shading_pictures


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling of all arms. None stands for the value of the pipeline's own `call_defaults`.

    steps: of the sampler. guidance: scale of classifier-free guidance. guide_shading: whether guidance strengthens the
    shading channel too. batch: pictures drawn at once. bf16: whether to run under bf16 autocast, which is two to three
    times faster on a CPU; its pictures differ from those in fp32 by rounding.
    """

    steps: int | None = None
    guidance: float | None = None
    guide_shading: bool | None = None
    batch: int = 16
    bf16: bool = False

    def suited_to(self, pipeline: FaceMakeUpPipeline) -> "SamplingConfig":
        """Returns these settings with the pipeline's own values in place of None."""
        chosen = pipeline.call_defaults.filled(
            num_inference_steps=self.steps, guidance_scale=self.guidance, guide_shading=self.guide_shading
        )
        return replace(
            self, steps=chosen.num_inference_steps, guidance=chosen.guidance_scale, guide_shading=chosen.guide_shading
        )


def generate_arm(
    pipeline: FaceMakeUpPipeline,
    arm: Arm,
    jobs: Sequence[Job],
    arrays: FaceArrays,
    directory: Path,
    config: SamplingConfig,
    *,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Returns the pictures (N, S, S, 3), uint8, of all jobs, and keeps them as `directory`/00000.png, …

    Each picture has its own seed, so neither the batch size nor an interruption changes its initial noise. A file that
    cannot be read is drawn again. `progress` is called with the number of pictures that were added.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{number:05d}.png" for number in range(len(jobs))]
    missing = [number for number, path in enumerate(paths) if _read_picture(path) is None]
    if progress is not None:
        progress(len(jobs) - len(missing))
    for numbers in batches(missing, config.batch):
        part = [jobs[number] for number in numbers]
        rows = [job.reference for job in part]
        options = {}
        if arm.reference:
            options["image"] = [np.asarray(arrays.images[row]) for row in rows]
            options["landmarks"] = [np.asarray(arrays.landmarks_5[row]) for row in rows]
        with torch.autocast(pipeline.device.type, torch.bfloat16, enabled=config.bf16):
            output = pipeline(
                [job.prompt for job in part],
                identity_scale=arm.identity_scale,
                shading_scale=arm.shading_scale,
                num_inference_steps=config.steps,
                guidance_scale=config.guidance,
                guide_shading=config.guide_shading,
                generator=[torch.Generator().manual_seed(job.seed) for job in part],
                **options,
            )
        for number, image, record in zip(numbers, output.images, output.provenance, strict=True):
            save_image(image, paths[number], record)
        if progress is not None:
            progress(len(part))
    return np.stack([np.asarray(_read_picture(path)) for path in paths])


@torch.no_grad()
def fitted_maps(pipeline: FaceMakeUpPipeline, rows: Sequence[int], arrays: FaceArrays) -> dict[int, NDArray[np.uint8]]:
    """Returns, by row, the shading map (S, S, 3) that the shading channel gets for this portrait as the reference.

    The result is empty if the pipeline has no shading channel or no fitter.
    """
    if pipeline.shading_channel is None or pipeline.face_fitter is None or not rows:
        return {}
    references = prepare_references(
        [np.asarray(arrays.images[row]) for row in rows],
        landmarks=[np.asarray(arrays.landmarks_5[row]) for row in rows],
    )
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    maps = fitted_shading(pipeline.face_fitter, references, None, height=side, width=side)
    pictures = shading_pictures(maps, None, len(rows))
    return {row: np.asarray(picture) for row, picture in zip(rows, pictures, strict=True)}


def _read_picture(path: Path) -> NDArray[np.uint8] | None:
    """Returns RGB (H, W, 3), or None if the file is missing or incomplete."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    # Pillow raises any of these for a damaged PNG.
    except (OSError, SyntaxError, ValueError, EOFError):
        return None


def claim_folder(out: Path, settings: dict) -> None:
    """Writes the run's settings to run.json, or checks that the folder's pictures were drawn with the same settings.

    Raises ConfigError, which names the settings that differ, so that the pictures of two runs never mix. It also raises
    ConfigError for a folder that has pictures but no run.json, or a damaged one.
    """
    path = out / "run.json"
    if not path.is_file():
        if (out / "images").exists():
            raise ConfigError(
                f"{out / 'images'} exists, but {path}, which says how its pictures were made, does not: choose another "
                "--out, or remove the pictures"
            )
        write_json(path, settings)
        return
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): choose another --out, or remove {out}") from error
    different = [key for key in settings if stored.get(key) != settings[key]]
    if different:
        raise ConfigError(f"{out} holds pictures of another run ({', '.join(different)} differ): choose another --out")
