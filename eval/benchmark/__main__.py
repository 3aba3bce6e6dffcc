"""Evaluate a generator on the test identities of a data set, arm by arm.

python -m eval.benchmark --model EXPORT --data DIR --out runs/generation --steps 8 --guidance 2 --guide-shading

The last three options are what was chosen for the tiny models.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from eval.arguments import check_export, check_guidance, check_least, check_seed, use_device, use_threads
from eval.benchmark.arms import SamplingConfig
from eval.benchmark.page import RULES, add_sections, first_examples
from eval.benchmark.plan import ARMS, select_arms
from eval.benchmark.run import evaluate, to_json
from eval.reports.report import Report, write_json
from eval.reports.sheet import save_sheet
from faceclip.errors import FaceClipError
from faceclip.training.checkpoints import make_folder
from makeup_plugin.marking.provenance import sheet_record


def check_options(options: argparse.Namespace) -> None:
    """Raises ConfigError or CheckpointError for what would fail only after a long run."""
    check_least("--images-per-arm", options.images_per_arm)
    check_least("--steps", options.steps)
    check_least("--batch", options.batch)
    check_guidance(options.guidance)
    check_seed(options.seed)
    check_export("--model", options.model, "model_index.json", "the export folder of `python -m train_generator`")
    for option, folder in (("--judge", options.judge), ("--second-recognizer", options.second_recognizer)):
        if folder is not None:
            check_export(option, folder, "config.json", "the folder of a trained one, or leave the option out")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="pipeline folder (export of train_generator)")
    parser.add_argument("--data", type=Path, required=True, help="data set folder")
    parser.add_argument("--out", type=Path, required=True, help="receives images, results, report.html, examples.png")
    parser.add_argument("--images-per-arm", type=int, default=500)
    parser.add_argument("--arms", default=",".join(ARMS), help=f"comma-separated, of {', '.join(ARMS)}")
    parser.add_argument(
        "--steps",
        type=int,
        default=SamplingConfig.steps,
        help="sampler steps (default %(default)s; 8 for the tiny models)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=SamplingConfig.guidance,
        help="guidance scale (default %(default)s; 2, with --guide-shading, for the tiny models, as "
        "chosen on validation people)",
    )
    parser.add_argument("--guide-shading", action="store_true", help="guidance strengthens the shading channel too")
    parser.add_argument("--batch", type=int, default=SamplingConfig.batch)
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast: faster, pictures differ by rounding")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--split",
        default="test",
        choices=("test", "validation"),
        help="whose portraits: choose settings on validation, report test",
    )
    parser.add_argument("--device", default="cpu", help="of pipeline and judges, as cuda; faces are found on the CPU")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--judge", type=Path, help="folder of another judge than the shipped one")
    parser.add_argument("--second-recognizer", type=Path, help="folder of another second recognizer")
    options = parser.parse_args(arguments)
    sampling = SamplingConfig(
        steps=options.steps,
        guidance=options.guidance,
        guide_shading=options.guide_shading,
        batch=options.batch,
        bf16=options.bf16,
    )
    try:
        check_options(options)
        arms = select_arms(options.arms)
        use_threads(options.threads)
        device = use_device(options.device)
        make_folder(options.out, "--out ")
        result = evaluate(
            options.model,
            options.data,
            options.out,
            arms,
            count=options.images_per_arm,
            seed=options.seed,
            sampling=sampling,
            judge=options.judge,
            second=options.second_recognizer,
            split=options.split,
            device=device,
        )
        report = Report("Generation", f"{options.images_per_arm:,} pictures per arm of {options.split} people.")
        shown = first_examples(result.jobs, result.pictures, result.arrays, result.maps)
        criteria = add_sections(report, result.scores, result.context, result.jobs, shown)
        content = to_json(result)
        content["settings"] = {
            **asdict(sampling),
            "images per arm": options.images_per_arm,
            "seed": options.seed,
            "split": options.split,
            **result.made_by,
        }
        content["rules"] = RULES
        content["criteria"] = [{"criterion": text, "measured": seen, "met": met} for text, seen, met in criteria]
        write_json(options.out / "results.json", content)
        path = report.write(options.out / "report.html")
        report.save_parts(options.out / "report.json")
        record = sheet_record(model=str(options.model), prompts=shown.prompts)
        save_sheet(options.out / "examples.png", shown.grid, shown.headers, row_labels=shown.prompts, provenance=record)
    except FaceClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for text, seen, met in criteria:
        print(f"{'met    ' if met else 'NOT met'}  {text}: {seen}")
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
