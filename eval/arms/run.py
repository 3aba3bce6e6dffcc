"""Runs the generation evaluation: draws the pictures of every arm, and scores them and real portraits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from eval.arms.arms import SamplingConfig, claim_folder, fitted_maps, generate_arm
from eval.arms.plan import Arm, Job, first_people, plan_jobs
from eval.arms.scores import Scores, compare, embed_references, judge_pictures, summarize
from eval.hashes import code_hash, pipeline_hash
from eval.judges.panel import Judges, load_judges
from faceclip.data.arrays import FaceArrays, load_arrays
from faceclip.errors import ConfigError, DataError
from faceclip.retrieval.labels import labels_of
from faceclip.storage.hashes import bytes_hash, module_hash
from faceclip.training.progress import counting_columns
from makeup_plugin.loading import load_pipeline


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """What an evaluation found.

    pictures, scores: by arm. context: scores of real portraits, for comparison. maps: shading maps of the references
    that the examples show, by row. made_by: hashes of model, data, plan, code and judges.
    """

    jobs: list[Job]
    pictures: Mapping[str, NDArray[np.uint8]]
    scores: Mapping[str, Scores]
    context: Mapping[str, Scores]
    arrays: FaceArrays
    maps: Mapping[int, NDArray[np.uint8]]
    sampling: SamplingConfig
    made_by: Mapping[str, str]


def require_gallery(arrays: FaceArrays) -> None:
    """Raises DataError if the split has no frontal portrait, because nobody could be recognized without a gallery."""
    if not (np.asarray(arrays.index) == 0).any():
        raise DataError("--data has no frontal test portrait (index 0): the gallery needs one per person")


def evaluate(
    model: Path,
    data: Path,
    out: Path,
    arms: Sequence[Arm],
    *,
    count: int,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    judge: Path | None = None,
    second: Path | None = None,
    split: str = "test",
    device: torch.device | str = "cpu",
) -> GenerationResult:
    """Draws and scores `count` pictures per arm. An interrupted run resumes where it stopped.

    model: export of `train_generator`. data: data set, of which `split` is used. out: folder of the pictures. judge,
    second: folders of networks that replace the shipped judge and second recognizer.

    Raises ConfigError for settings that do not suit the model or the earlier pictures in `out`, DataError for data
    without a gallery, and CheckpointError for damaged models.
    """
    pipeline = load_pipeline(model, device=str(device), progress=False)
    sampling = (sampling or SamplingConfig()).suited_to(pipeline)
    for arm in arms:
        if (arm.identity_scale and pipeline.identity_channel is None) or (
            arm.shading_scale and pipeline.shading_channel is None
        ):
            raise ConfigError(f"{model} lacks a channel that arm {arm.name} needs: leave it out of --arms")
        if arm.shading_scale and pipeline.face_fitter is None:
            raise ConfigError(
                f"{model} has no face_fitter, whose shading maps arm {arm.name} needs: train with a "
                "fitter, or leave the arm out of --arms"
            )
    trained_steps = pipeline.scheduler.config.num_train_timesteps
    if sampling.steps is not None and sampling.steps > trained_steps:
        raise ConfigError(f"--steps must be at most {trained_steps}, which {model} was trained with")
    face, fitter = pipeline.joint_encoder.face_encoder, pipeline.face_fitter
    judges = load_judges(face, judge, second, device=pipeline.device, fitter=fitter)
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    arrays = load_arrays(data, split, size=size)
    source = load_arrays(data, split)
    require_gallery(arrays)
    jobs = plan_jobs(labels_of(arrays), count, seed=seed)
    settings = {
        "model": pipeline_hash(model),
        "data": arrays.content_hash,
        # The same command may mean other prompts, or other pictures, after a change of the code or of numpy.
        "plan": bytes_hash(repr(jobs).encode()),
        "code": code_hash("faceclip", "makeup_plugin", "eval"),
        "seed": seed,
        "count": count,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "guide_shading": sampling.guide_shading,
        "bf16": sampling.bf16,
    }
    claim_folder(out, settings)
    pictures = {}
    with Progress(*counting_columns()) as bar:
        task = bar.add_task("pictures", total=len(arms) * len(jobs))
        for arm in arms:
            bar.update(task, description=f"arm {arm.name}")
            pictures[arm.name] = generate_arm(
                pipeline,
                arm,
                jobs,
                source,
                out / "images" / arm.name,
                sampling,
                progress=lambda number: bar.advance(task, number),
            )
    references = embed_references(judges, arrays)
    scores = {name: judge_pictures(judges, images, jobs, arrays, references) for name, images in pictures.items()}
    context = real_portraits(judges, jobs, arrays, references)
    shown = [jobs[number].reference for number in first_people(jobs, arrays.identity)]
    maps = fitted_maps(pipeline, shown, source)
    made_by = {name: str(settings[name]) for name in ("model", "data", "plan", "code")}
    made_by |= {"judge": module_hash(judges.judge), "second recognizer": module_hash(judges.second)}
    return GenerationResult(
        jobs=jobs,
        pictures=pictures,
        scores=scores,
        context=context,
        arrays=arrays,
        maps=maps,
        made_by=made_by,
        sampling=sampling,
    )


@torch.no_grad()
def real_portraits(judges: Judges, jobs: Sequence[Job], arrays: FaceArrays, references) -> dict[str, Scores]:
    """Scores real portraits in place of pictures: another portrait of the person, and a stranger's.

    Their prompt names what the portrait really shows, so that prompt accuracy is that of the judge itself. Frontal
    portraits are not used, because the gallery consists of them. Jobs without a suitable portrait are left out, and so
    is a row without jobs.
    """
    generator = np.random.default_rng(0)
    values = arrays.seen_values
    result = {}
    for label, same in (("real: another portrait of the person", True), ("real: a stranger", False)):
        shown, truth = [], []
        for job in jobs:
            mine = arrays.identity == arrays.identity[job.reference]
            allowed = (mine if same else ~mine) & (arrays.index != 0)
            allowed[job.reference] = False
            if not allowed.any():
                continue
            row = int(generator.choice(np.flatnonzero(allowed)))
            names = {name: str(values[name][row]) for name in job.names if values[name][row]}
            shown.append(row)
            truth.append(Job(reference=job.reference, prompt="", names=names, seed=0))
        if not shown:
            continue
        result[label] = judge_pictures(judges, np.asarray(arrays.images)[shown], truth, arrays, references)
    return result


def to_json(result: GenerationResult) -> dict:
    """Returns the figures per arm, the differences from the arm `text`, and the figures of real portraits, for
    `write_json`."""
    content: dict[str, Any] = {
        "arms": {name: summarize(value) for name, value in result.scores.items()},
        "real": {name: summarize(value) for name, value in result.context.items()},
        "frechet distance": {name: value.frechet for name, value in {**result.scores, **result.context}.items()},
    }
    if "text" in result.scores:
        base = result.scores["text"]
        content["difference from text only"] = {
            name: compare(value, base) for name, value in result.scores.items() if name != "text"
        }
    return content
