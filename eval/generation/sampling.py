"""Makes the pictures of an arm with the pipeline; finished pictures are kept and not made again."""

import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from eval.generation.plan import Arm, Job, batches
from eval.report import write_text
from faceclip.data.arrays import FaceArrays
from faceclip.errors import ConfigError
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.provenance import save_image


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Steps and guidance of every arm, how many pictures are made at once, and whether in bf16 autocast.

    bf16 is two to three times faster on a CPU; its pictures differ from fp32's by rounding.
    """

    steps: int = 20
    guidance: float = 3.0
    batch: int = 16
    bf16: bool = False


def load_pipeline(directory: Path) -> FaceMakeUpPipeline:
    """A trained pipeline without progress bars of its own. Raises CheckpointError naming what is missing."""
    # diffusers loads only components whose modules are imported already.
    for module in ("faceclip.encoder", "faceclip.image_tower", "faceclip.face3d.fitter"):
        importlib.import_module(module)
    pipeline = FaceMakeUpPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
    """Pictures (N, S, S, 3) of all jobs, read from or written to `directory`/00000.png, …

    Each picture has its own seed: neither the batch size nor an interruption changes the noise it starts from.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{number:05d}.png" for number in range(len(jobs))]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
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
                generator=[torch.Generator().manual_seed(job.seed) for job in part],
                **options,
            )
        for number, image, record in zip(numbers, output.images, output.provenance, strict=True):
            save_image(image, paths[number], record)
        if progress is not None:
            progress(len(part))
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def claim_folder(out: Path, settings: dict) -> None:
    """Write the run's settings, or check that the folder's pictures were made with the same ones.

    Raises ConfigError naming what differs, so that two runs never mix.
    """
    path = out / "run.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key in settings if stored.get(key) != settings[key]]
        if different:
            raise ConfigError(
                f"{out} holds pictures of another run ({', '.join(different)} differ): choose another --out"
            )
        return
    write_text(path, json.dumps(settings, indent=1))


def model_hash(directory: Path) -> str:
    """SHA-256 over all weight files below a folder, in order of their names."""
    digest = hashlib.sha256()
    for file in sorted(directory.rglob("*.safetensors")):
        digest.update(str(file.relative_to(directory)).encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
