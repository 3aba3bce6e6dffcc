"""Evaluates a generator on the test identities of a data set, arm by arm.

python -m eval.arms --model EXPORT --data DIR --out runs/generation
"""

import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from eval.arguments import MAX_SEED, check_export, use_threads
from eval.arms.arms import SamplingConfig
from eval.arms.page import RULES, add_sections, first_examples
from eval.arms.plan import ARMS, select_arms
from eval.arms.run import evaluate, to_json
from eval.reports.report import Report, write_json
from eval.reports.sheet import save_sheet
from faceclip.settings import run, setting
from faceclip.towers.placement import named_device
from faceclip.training.checkpoints import make_folder
from makeup_plugin.marking.provenance import sheet_record
from makeup_plugin.saving.shipped import is_shipped


@dataclass(kw_only=True)
class BenchmarkSettings:
    """Settings of the command: model, data, sampling, and the judging networks."""

    model: Path = setting(help="pipeline folder (export of train_generator), or tiny, the shipped pipeline")
    data: Path = setting(help="data set folder")
    out: Path = setting(help="receives images, results, report.html, examples.png")
    images_per_arm: int = setting(500, "pictures per arm", least=1)
    arms: str = setting(",".join(ARMS), "comma-separated names; the default lists all")
    steps: int | None = setting(None, "sampler steps; default: the model's own", least=1)
    guidance: float | None = setting(None, "guidance scale; default: the model's own", least=0)
    guide_shading: bool | None = setting(
        None, "whether guidance strengthens the shading channel too; default: the model's own choice"
    )
    batch: int = setting(SamplingConfig.batch, "pictures drawn at once", least=1)
    bf16: bool = setting(False, "bf16 autocast: faster, but pictures differ by rounding")
    seed: int = setting(0, "seed of the choice of people and of the noise", least=0, most=MAX_SEED)
    split: Literal["test", "validation"] = setting("test", "choose settings on validation, report test")
    device: str = setting("cpu", "device of pipeline and judges, for example cuda; faces are detected on the CPU")
    threads: int | None = setting(None, "torch threads", least=1)
    judge: Path | None = setting(None, "folder of a judge to use in place of the shipped one")
    second_recognizer: Path | None = setting(None, "folder of a second recognizer to use in place of the shipped one")

    @property
    def sampling(self) -> SamplingConfig:
        """The sampling of every arm."""
        return SamplingConfig(
            steps=self.steps, guidance=self.guidance, guide_shading=self.guide_shading, batch=self.batch, bf16=self.bf16
        )


def check_folders(settings: BenchmarkSettings) -> None:
    """Raises CheckpointError if a model's folder is missing or wrong, so that the run does not fail late."""
    if not is_shipped(settings.model):
        remedy = "the export folder of `python -m train_generator`, or tiny"
        check_export("--model", settings.model, "model_index.json", remedy)
    for option, folder in (("--judge", settings.judge), ("--second-recognizer", settings.second_recognizer)):
        if folder is not None:
            check_export(option, folder, "config.json", "the folder of a trained one, or leave the option out")


def generate_and_judge(settings: BenchmarkSettings) -> None:
    """Draws and judges the pictures, writes results and report, and prints which criteria are met."""
    check_folders(settings)
    arms = select_arms(settings.arms)
    use_threads(settings.threads)
    device = named_device(settings.device, "--device")
    make_folder(settings.out, "--out ", ("run.json", "images"))
    result = evaluate(
        settings.model,
        settings.data,
        settings.out,
        arms,
        count=settings.images_per_arm,
        seed=settings.seed,
        sampling=settings.sampling,
        judge=settings.judge,
        second=settings.second_recognizer,
        split=settings.split,
        device=device,
    )
    report = Report("Generation", f"{settings.images_per_arm:,} pictures per arm of {settings.split} people.")
    shown = first_examples(result.jobs, result.pictures, result.arrays, result.maps)
    criteria = add_sections(report, result.scores, result.context, result.jobs, shown)
    content = to_json(result)
    content["settings"] = {
        **asdict(result.sampling),
        "images per arm": settings.images_per_arm,
        "seed": settings.seed,
        "split": settings.split,
        **result.made_by,
    }
    content["rules"] = RULES
    content["criteria"] = [{"criterion": text, "measured": seen, "met": met} for text, seen, met in criteria]
    write_json(settings.out / "results.json", content)
    path = report.write(settings.out / "report.html")
    report.save_parts(settings.out / "report.json")
    record = sheet_record(model=str(settings.model), prompts=shown.prompts)
    save_sheet(settings.out / "examples.png", shown.grid, shown.headers, row_labels=shown.prompts, provenance=record)
    for text, seen, met in criteria:
        print(f"{'met    ' if met else 'NOT met'}  {text}: {seen}")
    print(f"report: {path}")


main = partial(
    run, generate_and_judge, BenchmarkSettings, flags=True, interrupted="interrupted; the same command resumes"
)

if __name__ == "__main__":
    sys.exit(main())
