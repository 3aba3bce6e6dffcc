"""What a log line says of the machine, how float32 products are taken, and how batches travel to an accelerator."""

import math
import resource
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from faceclip.cpu.matmul import has_onednn
from faceclip.training.interfaces import TrainerConfig

# Dense bf16 products of tensor cores in TFLOP/s by a word of the device's name, as the vendor's data sheets give them.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A10": 125.0,
    "L4": 121.0,
    "4090": 165.0,
    "3090": 71.0,
}


def peak_tflops(device: torch.device, *, half: bool) -> float | None:
    """The peak of a known GPU for bf16 products; None for others, for the CPU and for float32."""
    if device.type != "cuda" or not half:
        return None
    words = torch.cuda.get_device_name(device).split()
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in words), None)


class FlopMeter:
    """How much of a peak (TFLOP/s of one device; None: unknown, nothing is counted) the steps of a process use.

    Counted are the products and convolutions of one step as they are executed, by torch's formula for each operator:
    what gradient checkpointing computes twice counts twice.
    """

    def __init__(self, peak: float | None) -> None:
        self.peak = peak
        self.flops: int | None = None  # of a step of this process

    @classmethod
    def of(cls, config: TrainerConfig, device: torch.device) -> "FlopMeter":
        """The meter of a run; torch cannot count a compiled step."""
        peak = config.peak_tflops or peak_tflops(device, half=config.precision == "bf16")
        return cls(None if config.compile else peak)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Context of a step; the first one is counted."""
        if self.peak is None or self.flops is not None:
            yield
            return
        with FlopCounterMode(display=False, custom_mapping=_onednn()) as counter:
            yield
        self.flops = counter.get_total_flops()

    def percent(self, seconds: float) -> dict[str, float]:
        """flops_percent for the log, from the seconds that a step takes; nothing where the peak is unknown."""
        if self.peak is None or self.flops is None:
            return {}
        return {"flops_percent": 100 * self.flops / (seconds * self.peak * 1e12)}


def _onednn() -> dict[Any, Any]:
    """The operator of `faceclip.cpu.matmul`, which torch's counter does not know, with its formula."""

    def linear(rows: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
        return 2 * math.prod(rows) * weight[0]

    return {torch.ops.mkldnn._linear_pointwise: linear} if has_onednn() else {}


def memory_gib(device: torch.device) -> float:
    """The most memory that this process has held so far, in GiB: torch's on a GPU, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Context in which CUDA multiplies float32 by TF32 (10 bits of mantissa) or exactly; other devices do not care."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def policy(config: TrainerConfig, device: torch.device) -> AbstractContextManager[None]:
    """Context of a run: `float32_products` on CUDA as `trainer.tf32` says, nothing elsewhere."""
    tf32 = config.precision == "bf16" if config.tf32 is None else config.tf32
    return float32_products(tf32=tf32) if device.type == "cuda" else nullcontext()


def pinned(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on its way to `device`: in page-locked memory for CUDA, from which a copy does not wait."""
    if device.type != "cuda":
        return batch
    return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}


def moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch with its tensors on `device`; from pinned memory the host does not wait for the copy."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
