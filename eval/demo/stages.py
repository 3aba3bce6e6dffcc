"""The demo's stages: a command each, how far it is, and how long it takes on two cores."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from faceclip.people.plan import Request, plan_shards
from faceclip.settings import setting


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of the demo. `data_seed` is none of those whose data trained the shipped towers (2026, 2027)."""

    identities: int = setting(420, "people", least=1)
    images_per_identity: int = setting(6, "portraits of each", least=1)
    splits: tuple[int, int, int] = setting((330, 30, 60), "people for training, validation and test", least=2)
    size: int = setting(128, "side of the portraits in px", least=1)
    data_seed: int = setting(31, "of the people", least=0)
    encoder_steps: int = setting(300, "of stage 1", least=1)
    generator_steps: int = setting(400, "of stage 2", least=1)
    queries: int = setting(360, "of the retrieval", least=1)
    images_per_arm: int = setting(20, "pictures of each arm", least=1)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command. `expected` seconds on two cores; `progress` tells from its files how much is done (0 to 1);
    `outputs`: files and folders that it makes, which are removed before it starts anew."""

    name: str
    title: str
    command: list[str]
    expected: float
    progress: Callable[[], float | None] = field(compare=False)
    outputs: tuple[Path, ...] = ()

    def shown(self, root: Path) -> str:
        """Returns the command as a reader would type it from the project's folder."""
        words = ["python", *self.command[1:]]
        folder = re.compile(rf"(^|=){re.escape(str(root))}(?=/|$)")
        return " ".join(folder.sub(lambda found: f"{found[1]}runs/{root.name}", word) for word in words)


def make_stages(root: Path, config: DemoConfig) -> list[Stage]:
    """Returns all stages in order; each command is one that the README documents."""
    data, encoder, generator = root / "data", root / "encoder", root / "generator"
    request = Request(
        identities=config.identities,
        images_per_identity=config.images_per_identity,
        size=config.size,
        seed=config.data_seed,
        splits=(config.splits[0], config.splits[1], config.splits[2]),
        framing="head",
    )
    shards = len(plan_shards(request))
    arms = 5
    return [
        Stage(
            name="data",
            title="render synthetic identities",
            command=_command(
                *("faceclip.people", "--out", data, "--identities", config.identities),
                *("--images-per-identity", config.images_per_identity, "--size", config.size),
                *("--seed", config.data_seed, "--framing", "head", "--splits", *config.splits, "--quiet"),
            ),
            expected=75,
            progress=lambda: len(list(data.glob("data/*.parquet"))) / shards,
            outputs=(data,),
        ),
        Stage(
            name="encoder",
            title="stage 1: train the joint encoder",
            command=_command("train_encoder", f"data={data}", f"out={encoder}", *_length(config.encoder_steps)),
            expected=210,
            progress=lambda: _trained(encoder, config.encoder_steps),
            outputs=(encoder,),
        ),
        Stage(
            name="generator",
            title="stage 2: train the generator plugin",
            command=_command(
                *("train_generator", f"data={data}", f"encoder={encoder / 'export'}", f"out={generator}"),
                *_length(config.generator_steps),
            ),
            expected=290,
            progress=lambda: _trained(generator, config.generator_steps),
            outputs=(generator,),
        ),
        Stage(
            name="retrieval",
            title="evaluate retrieval",
            command=_command(
                *("eval.retrieval", "--model", encoder / "export", "--data", data),
                *("--out", root / "retrieval", "--queries", config.queries),
            ),
            expected=30,
            progress=lambda: None,
            outputs=(root / "retrieval",),
        ),
        Stage(
            name="generation",
            title="evaluate generation",
            command=_command(
                *("eval.arms", "--model", generator / "export", "--data", data, "--out", root / "generation"),
                *("--images-per-arm", config.images_per_arm, "--bf16"),
            ),
            expected=30,
            progress=lambda: len(list((root / "generation").glob("images/*/*.png"))) / (arms * config.images_per_arm),
            outputs=(root / "generation",),
        ),
        Stage(
            name="report",
            title="draw test identities and write the report",
            command=_command("eval.demo.showcase", root),
            expected=30,
            progress=lambda: None,
            outputs=(root / "pictures", root / "portraits.png", root / "report.html"),
        ),
    ]


def _command(*words: object) -> list[str]:
    return [sys.executable, "-m", *map(str, words)]


def _length(steps: int) -> tuple[str, str]:
    return f"trainer.steps={steps}", f"trainer.validate_every={steps}"


def _trained(run: Path, steps: int) -> float | None:
    """Returns the share of the steps in a training's log; the caching before the first step is a small part."""
    last = last_log_line(run / "log.jsonl")
    return None if last is None else min(1.0, last.get("step", 0) / steps)


def last_log_line(path: Path) -> dict | None:
    """Returns the last complete line of a JSONL log."""
    try:
        lines = path.read_bytes()[-8192:].splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            # The trainer may be writing it at this moment.
            continue
    return None


def remaining_seconds(
    stages: list[Stage], done: dict[str, float], current: Stage, elapsed: float, fraction: float | None
) -> float:
    """Returns an estimate of the time left: expectations scaled by how long finished stages really took.

    `done`: name → seconds of the stages that ran; `elapsed` and `fraction` (None: unknown) of the current one.
    """
    ran = [stage for stage in stages if done.get(stage.name, 0) > 0]
    pace = sum(done[stage.name] for stage in ran) / sum(stage.expected for stage in ran) if ran else 1.0
    pace = min(max(pace, 0.2), 5.0)
    own = current.expected * pace
    if fraction is not None and fraction > 0.05:
        # Its own speed tells more than any expectation, the more the further it is.
        trust = min(1.0, 2 * fraction)
        own = trust * elapsed / fraction + (1 - trust) * own
    later = stages[stages.index(current) + 1 :]
    return max(own - elapsed, 0.0) + pace * sum(stage.expected for stage in later if stage.name not in done)
