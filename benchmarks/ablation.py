"""What an option of stage 2 changes on tiny data: the shipped pipeline trained further with it and without it.

    python -m faceclip.people --out DATA --identities 60 --images-per-identity 6 --size 128 --seed 4711 \\
        --splits 40 4 16 --framing head
    python -m benchmarks.ablation encoder ENCODER                   # the shipped pipeline's joint encoder
    python -m benchmarks.ablation words DATA ENCODER                # the common part of the trainings' command
    python -m benchmarks.ablation compare DATA RUN/export OTHER/export --pictures 64 --out OUT

compare: pictures of both of the same people, words and noise, and the difference first − second with its 95 % interval
by person, arm "all". A difference between two runs of one seed holds for these two runs alone.
"""

import argparse
from pathlib import Path

from eval.arms.plan import select_arms
from eval.arms.run import evaluate
from eval.arms.scores import compare, summarize
from makeup_plugin import FaceMakeUpPipeline
from makeup_plugin.saving.shipped import shipped_pipeline


def encoder(out: Path) -> None:
    """The folder that stage 2 takes as `encoder=`."""
    pipeline = FaceMakeUpPipeline.from_pretrained("tiny")
    pipeline.joint_encoder.save_pretrained(out)
    pipeline.image_encoder.save_pretrained(out / "image_tower")


def words(data: Path, encoder_at: Path) -> list[str]:
    """Settings of a short training of the whole UNet from the shipped weights, with the loss on decoded faces."""
    settings = [f"data={data}", f"encoder={encoder_at}", f"init={shipped_pipeline('tiny')}", "validation_rows=4"]
    trainer = {"steps": 300, "batch_size": 4, "learning_rate": 2e-4, "warmup_steps": 20, "ema_decay": 0.98}
    trainer |= {"validate_every": 0, "save_every": 50, "keep_checkpoints": 1, "num_threads": 1, "log_every": 10}
    settings += [f"trainer.{name}={value}" for name, value in trainer.items()]
    return ["--preset", "portraits", *settings, "loss.identity=0.2", "loss.identity_below=500", "loss.identity_rows=2"]


def comparison(data: Path, models: list[Path], out: Path, *, count: int) -> None:
    """Figures of both models, and their differences by person."""
    arms = select_arms("all")
    found = [evaluate(model, data, out / str(number), arms, count=count) for number, model in enumerate(models)]
    scores = [result.scores["all"] for result in found]
    figures = [summarize(score) for score in scores]
    differences = compare(*scores)
    print("| figure | first | second | first − second |\n| --- | --- | --- | --- |")
    for name, value in figures[0].items():
        print(f"| {name} | {value} | {figures[1][name]} | {differences.get(name, '')} |")
    print(f"\n{figures[0]['faces found'].count} pictures of {figures[0]['faces found'].identities} people.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making, telling, comparing = (commands.add_parser(name) for name in ("encoder", "words", "compare"))
    making.add_argument("out", type=Path)
    for command in (telling, comparing):
        command.add_argument("data", type=Path)
    telling.add_argument("encoder", type=Path)
    comparing.add_argument("models", type=Path, nargs=2)
    comparing.add_argument("--pictures", type=int, default=64)
    comparing.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.command == "encoder":
        encoder(given.out)
    elif given.command == "words":
        print(" ".join(words(given.data, given.encoder)))
    else:
        comparison(given.data, given.models, given.out, count=given.pictures)


if __name__ == "__main__":
    main()
