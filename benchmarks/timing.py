"""What the tables of `encoder.py` share: clocks, ratios and the circumstances."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from faceclip.cpu import matmul as cpu_matmul


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Least processor and wall seconds of some runs."""

    cpu: float
    wall: float


def timed(action: Callable[[], object], repeat: int, device: torch.device, warm_up: int = 1) -> Timing:
    """Runs `warm_up` times, then `repeat` times."""
    cpu, wall = [], []
    for number in range(warm_up + repeat):
        started = time.process_time(), time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= warm_up:
            cpu.append(time.process_time() - started[0])
            wall.append(time.perf_counter() - started[1])
    return Timing(cpu=min(cpu), wall=min(wall))


def ratio(a: Timing, b: Timing, device: torch.device) -> float:
    """Time a by time b: processor time, on a GPU wall time."""
    return a.wall / b.wall if device.type == "cuda" else a.cpu / b.cpu


def speed(reference: Timing, other: Timing, device: torch.device) -> str:
    """How many times faster than the reference."""
    return f"{ratio(reference, other, device):.2f} ×"


def describe(device: torch.device) -> str:
    """The circumstances, for a table's caption."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    kernels = "" if device.type == "cuda" else f", oneDNN products {'on' if cpu_matmul.has_onednn() else 'off'}"
    return f"{where}, torch {torch.__version__}{kernels}"


def use_plain_products() -> None:
    """From here on float32 products of this process take PyTorch's own route on the CPU (MKL), never oneDNN's."""
    cpu_matmul.has_onednn = lambda: False
