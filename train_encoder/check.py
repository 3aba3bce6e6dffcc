"""Checks whether stage 1 can run: inspects machine, data and weights, and rehearses three steps.

    python -m train_encoder.check --preset bigg14 data=DIR [what the run itself gets …]

The command takes the settings of `python -m train_encoder`, runs in one process, and leaves only the caches that the
run itself uses.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial

from faceclip.settings import run, setting
from faceclip.training import Trainer, TrainerConfig
from faceclip.training.rehearsal import machine, memory_plan, one_process, rehearse, report
from train_encoder.__main__ import prepare
from train_encoder.config import PRESETS, EncoderConfig
from train_encoder.queries import QuerySource
from train_encoder.task import EncoderTask


@dataclass(kw_only=True)
class CheckConfig(EncoderConfig):
    """The settings of stage 1, and those of the check."""

    price_per_hour: float = setting(
        0.0, "price of the device per hour, for the expected cost; 0: none", resume="free", least=0
    )


def check(config: CheckConfig) -> None:
    """Prints the findings. Raises the errors that the run would raise."""
    one_process()
    plans: list[dict[str, int]] = []

    def begin(short: TrainerConfig, out: str) -> Trainer:
        trainer = prepare(replace(config, trainer=short, out=out))
        lines, task, source = machine(trainer.device, config.trainer.precision), trainer.task, trainer.source
        assert isinstance(task, EncoderTask) and isinstance(source, QuerySource)
        for split, features in (("train", source.features), ("validation", task.validation)):
            people, captions = len(set(features.portraits.identity.tolist())), len(features.caption)
            count = len(features.portraits.identity)
            lines.append(f"data, {split}: {count} portraits of {people} persons, {captions} captions")
        lines.append("weights: " + ", ".join(f"{name} {value}" for name, value in trainer.facts.items()))
        print("\n".join(lines), flush=True)
        plans.append(memory_plan(trainer))
        return trainer

    found = rehearse(config.trainer, config.out, begin)
    print("\n".join(report(found, config.trainer, plans[0], config.price_per_hour)))


main = partial(run, check, CheckConfig, presets=PRESETS)

if __name__ == "__main__":
    sys.exit(main())
