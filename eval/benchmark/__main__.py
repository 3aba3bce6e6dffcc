"""Draw and compare any methods on any references.

    python -m eval.benchmark --suite SUITE.yaml --methods METHODS.yaml --out DIR
    python -m eval.benchmark --suite synthetic --out DIR

The same command resumes an interrupted run, and several processes with the same command share the work. The second
form renders its references and draws them with what ships.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.arguments import use_threads
from eval.benchmark.run import benchmark
from eval.benchmark.synthetic import SyntheticSettings
from faceclip.errors import ConfigError
from faceclip.settings import run, setting
from faceclip.storage.places import check_place
from faceclip.towers.placement import named_device


@dataclass(kw_only=True)
class BenchmarkSettings:
    """The suite and methods, and the folder of pictures and report."""

    suite: str = setting(help="SUITE.yaml, or synthetic: renders that are made for it", path=True)
    methods: Path | None = setting(None, "METHODS.yaml; with synthetic by default what ships, and real portraits")
    out: Path = setting(help="receives pictures, results and report.html; run again to resume")
    people: int = setting(40, "synthetic: persons, each drawn with --prompts captions of others", least=2)
    prompts: int = setting(4, "synthetic: captions per person", least=1)
    seed: int = setting(0, "synthetic: of people, captions and noise")
    pictures: int = setting(1, "synthetic: per person and caption", least=1)
    retry: bool = setting(False, "draw failed pictures again")
    draw_only: bool = setting(False, "draw and do not measure, as a helper of another process")
    device: str = setting("cpu", "of methods and networks, as cuda")
    threads: int | None = setting(None, "torch threads", least=1)

    def __post_init__(self) -> None:
        if self.suite != "synthetic" and self.methods is None:
            raise ConfigError("--methods: name the file of the methods, METHODS.yaml")


def compare(settings: BenchmarkSettings) -> None:
    """Draws, measures, writes the report and prints where it is."""
    use_threads(settings.threads)
    device = str(named_device(settings.device, "--device"))
    check_place(settings.out, "--out ", ("run.json", "data/request.json", ".claim.lock"))
    synthetic = SyntheticSettings(
        people=settings.people, prompts=settings.prompts, pictures=settings.pictures, seed=settings.seed
    )
    report = benchmark(
        settings.suite if settings.suite == "synthetic" else Path(settings.suite),
        settings.methods,
        settings.out,
        synthetic=synthetic,
        device=device,
        retry=settings.retry,
        draw_only=settings.draw_only,
    )
    print("all pictures are drawn" if report is None else f"report: {report}")


main = partial(run, compare, BenchmarkSettings, flags=True, interrupted="interrupted; the same command resumes")

if __name__ == "__main__":
    sys.exit(main())
