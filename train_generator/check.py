"""Checks whether stage 2 can run: inspects machine, data and weights, and rehearses three steps.

    python -m train_generator.check --preset sdxl data=DIR encoder=RUN/export [what the run itself gets …]

The command takes the settings of `python -m train_generator`, runs in one process, and leaves only the caches that the
run itself uses.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from faceclip.data.arrays import FaceArrays
from faceclip.settings import run, setting
from faceclip.towers.text import tokenizer
from faceclip.training import Trainer, TrainerConfig
from faceclip.training.rehearsal import machine, memory_plan, one_process, rehearse, report
from train_generator.__main__ import prepare
from train_generator.config import PRESETS, GeneratorConfig
from train_generator.samples import GenerationSource
from train_generator.streamed.portraits import StreamedPortraits
from train_generator.task import GeneratorTask

CONTEXT = 77  # tokens of a prompt, with those of begin and end


@dataclass(kw_only=True)
class CheckConfig(GeneratorConfig):
    """The settings of stage 2, and those of the check."""

    check_rows: int = setting(100, "number of portraits that are inspected", resume="free", least=1)
    price_per_hour: float = setting(
        0.0, "price of the device per hour, for the expected cost; 0: none", resume="free", least=0
    )


def look_at_rows(arrays: FaceArrays | StreamedPortraits, limit: int) -> dict[str, int]:
    """Inspects at most `limit` portraits, spread over the split, and counts their faults.

    Returns the number of inspected rows, and how many have a blank picture, a landmark outside of it, an empty shading
    map, no words, or a caption longer than the towers read.
    """
    rows = np.unique(np.linspace(0, len(arrays) - 1, min(limit, len(arrays))).astype(int)).tolist()
    found = {"rows": len(rows), "blank": 0, "faces cut": 0, "empty maps": 0, "without words": 0, "captions cut": 0}
    encode = tokenizer().encode
    for row in rows:
        points = np.asarray(arrays.landmarks_5[row])
        texts = [caption.text for caption in arrays.captions[row]]
        shading = np.asarray(arrays.shading[row])
        found["blank"] += int(arrays.images is not None and np.ptp(arrays.images[row]) == 0)
        found["faces cut"] += int(points.min() < -0.5 or (points > np.array(shading.shape[1::-1]) - 0.5).any())
        found["empty maps"] += int(shading.max() == 0)
        found["without words"] += int(not any(text.strip() for text in texts))
        found["captions cut"] += int(any(len(encode(text)) + 2 > CONTEXT for text in texts))
    return found


def check(config: CheckConfig) -> None:
    """Prints the findings. Raises the errors that the run would raise."""
    one_process()
    plans: list[dict[str, int]] = []

    def begin(short: TrainerConfig, out: str) -> Trainer:
        trainer = prepare(replace(config, trainer=short, out=out))
        _print(machine(trainer.device, config.trainer.precision))
        task, source = trainer.task, trainer.source
        assert isinstance(task, GeneratorTask) and isinstance(source, GenerationSource)
        for split, features in (("train", source.features), ("validation", task.validation)):
            arrays = features.arrays
            counts = ", ".join(f"{name} {count}" for name, count in look_at_rows(arrays, config.check_rows).items())
            _print(
                [f"data, {split}: {len(arrays)} portraits of {len(set(arrays.identity.tolist()))} persons; {counts}"]
            )
        hashes = ", ".join(f"{name} {value}" for name, value in trainer.facts.items())
        encoder = task.pipeline.joint_encoder.config.licence or "not named"
        _print([f"weights: {hashes}", f"licences: encoder {encoder}, export {config.licence}"])
        plans.append(memory_plan(trainer))
        return trainer

    found = rehearse(config.trainer, config.out, begin)
    _print(report(found, config.trainer, plans[0], config.price_per_hour))


def _print(lines: list[str]) -> None:
    print("\n".join(lines), flush=True)


main = partial(run, check, CheckConfig, presets=PRESETS)

if __name__ == "__main__":
    sys.exit(main())
