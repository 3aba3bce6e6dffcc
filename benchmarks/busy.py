"""How much a training step slows down where another program keeps one core busy.

    python benchmarks/busy.py [--seconds 10] [--rounds 3]

The step is that of the joint encoder on the shipped towers: 8 faces and prompts, forward and backward, float32, on all
cores. Each row is a process of its own, with or without sleeping threads (`faceclip.cpu.waiting`); the busy program is
an endless loop in a session of its own. Rows take turns, and the figure is the median of the rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from faceclip.cpu.waiting import VARIABLE

SPIN, SLEEP = "spin (OpenMP's own)", "sleep (PASSIVE)"
MEASURE = "--measure"
LOOP = "while True: pass"


def measure(seconds: float) -> float:
    """Steps per second of this process."""
    import torch

    from faceclip import weights
    from faceclip.encoder import FaceCLIP
    from faceclip.towers.face import FaceViT
    from faceclip.towers.text import TextTower

    torch.manual_seed(0)
    towers = (weights.path(f"tiny/{name}") for name in ("recognizer", "text_tower_l", "text_tower_g"))
    kinds = (FaceViT, TextTower, TextTower)
    model = FaceCLIP.from_components(*(kind.from_pretrained(path) for kind, path in zip(kinds, towers, strict=True)))
    faces, prompts = torch.rand(8, 3, 112, 112), ["a smiling person with red hair"] * 8
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model.encode(prompts, faces).tokens.square().mean().backward()
        optimizer.step()

    for _ in range(2):
        step()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps / (time.perf_counter() - started)


def run(waiting: str, seconds: float) -> float:
    """Steps per second of a new process whose threads wait in this way."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    if waiting == SLEEP:
        environment[VARIABLE] = "PASSIVE"
    words = [sys.executable, __file__, MEASURE, "--seconds", str(seconds)]
    return float(subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(MEASURE, action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.seconds))
        return
    found: dict[tuple[str, bool], list[float]] = {}
    for _ in range(arguments.rounds):
        for waiting in (SPIN, SLEEP):
            for busy in (False, True):
                other = subprocess.Popen([sys.executable, "-c", LOOP], start_new_session=True) if busy else None
                try:
                    found.setdefault((waiting, busy), []).append(run(waiting, arguments.seconds))
                finally:
                    if other is not None:
                        other.kill()
                        other.wait()
    print(f"{os.cpu_count()} cores\n")
    print("| threads wait by | alone, steps/s | beside a busy program | slower |")
    print("| --- | --- | --- | --- |")
    for waiting in (SPIN, SLEEP):
        alone, beside = (statistics.median(found[waiting, busy]) for busy in (False, True))
        print(f"| {waiting} | {alone:.2f} | {beside:.2f} | {alone / beside:.2f} × |")


if __name__ == "__main__":
    main()
