"""Make the tiny weights one after another, in pieces of limited time: each resumes where the last one stopped.

python -m train_generator.towers.chain out=DIR [--preset portraits] [seconds=540] [machine=gpu] [only=[vae]]

Every stage is a command of this project. A stage that still runs when the time is over gets SIGTERM: trainings save and
end, the generator of people keeps its finished shards, and the same command resumes. Exit status: 0 when all stages are
done, 75 (try again) when the time was over.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from faceclip.errors import ConfigError, DataError
from faceclip.settings import check_bounds, run, setting

PRESETS = Path(__file__).parent / "chains"
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # a process that SIGTERM ended, or that saved and ended itself
DONE = "done"


@dataclass(kw_only=True)
class ChainConfig:
    """The stages and how long they may run.

    Raises ConfigError for unknown names and for times and sizes that cannot be.
    """

    out: str = setting("runs/chain", "folder of the chain; {out} in a stage's words", path=True)
    stages: dict[str, list[str]] = setting(factory=dict, help="by name, in order, the words after `python -m` of each")
    more: dict[str, list[str]] = setting(factory=dict, help="words added to a stage's")
    gpu: dict[str, list[str]] = setting(factory=dict, help="words added first with machine=gpu, such as larger batches")
    machine: Literal["cpu", "gpu"] = setting("cpu", "whose words count")
    only: list[str] = setting(factory=list, help="stages to run; []: all")
    seconds: float = setting(0.0, "how long to run; 0: until the end", least=0)
    grace: float = setting(60.0, "seconds that a stage has to save and end", least=0)

    def __post_init__(self) -> None:
        for key, names in (("only", self.only), ("more", list(self.more)), ("gpu", list(self.gpu))):
            if unknown := [name for name in names if name not in self.stages]:
                raise ConfigError(f"{key}: no stage {', '.join(unknown)}; the stages are {', '.join(self.stages)}")
        if not self.stages:
            raise ConfigError("stages: there are none; choose a --preset or give a --config")
        check_bounds(self)

    def words(self, name: str) -> list[str]:
        """The words of a stage."""
        fitting = self.gpu.get(name, []) if self.machine == "gpu" else []
        words = (*self.stages[name], *fitting, *self.more.get(name, []))
        return [word.replace("{out}", self.out) for word in words]


def run_chain(config: ChainConfig) -> bool:
    """Run what is not done yet; whether all is. Raises DataError, naming stage and log, for a stage that fails."""
    out, deadline = Path(config.out), time.monotonic() + config.seconds if config.seconds else float("inf")
    for folder in (out / DONE, out / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    for name in config.only or config.stages:
        words, marker = config.words(name), out / DONE / f"{name}.json"
        if marker.is_file() and json.loads(marker.read_text())["command"] == words:
            print(f"{name}: done", flush=True)
            continue
        if time.monotonic() >= deadline or not _run_stage(name, words, out / "logs" / f"{name}.log", deadline, config):
            print(f"{name}: not done yet; the same command resumes", flush=True)
            return False
        marker.write_text(json.dumps({"command": words}))
    return True


def _run_stage(name: str, words: list[str], log: Path, deadline: float, config: ChainConfig) -> bool:
    """Whether the stage came to its end before the deadline."""
    began = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen([sys.executable, "-m", *words], stdout=file, stderr=subprocess.STDOUT)
        try:
            left = max(0.0, deadline - began)
            status = process.wait(None if left == float("inf") else left)
        except subprocess.TimeoutExpired:
            process.terminate()
            status = _end(process, config.grace)
        except BaseException:
            process.terminate()
            _end(process, config.grace)
            raise
    if status in STOPPED:
        return False
    if status:
        raise DataError(
            f"{name}: `python -m {' '.join(words)}` ended with status {status}; its last words are in {log}"
        )
    print(f"{name}: done in {time.monotonic() - began:.0f} s", flush=True)
    return True


def _end(process: subprocess.Popen, grace: float) -> int:
    """The status of a process that was asked to end, by force after `grace` seconds."""
    try:
        return process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return -signal.SIGTERM


def make(config: ChainConfig) -> int:
    """Runs the chain; returns the exit status."""
    return 0 if run_chain(config) else TRY_AGAIN


def main(argv: list[str] | None = None) -> int:
    """Entry point of `python -m train_generator.towers.chain`; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not any(word.startswith(("--preset", "--config", "-h", "--help")) for word in words):
        words = ["--preset", "portraits", *words]
    return run(make, ChainConfig, words, presets=PRESETS, interrupted="interrupted; the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
