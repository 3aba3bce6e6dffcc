"""Figures of the machine for log lines, precision of float32 products, and transfer of batches to an accelerator."""

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

# TFLOP/s of dense bf16 products by a word of the device's name, from the vendor's data sheets.
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
    """Returns the peak of a known GPU for bf16 products in TFLOP/s; None for other devices and for float32."""
    if device.type != "cuda" or not half:
        return None
    words = torch.cuda.get_device_name(device).split()
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in words), None)


class FlopMeter:
    """Measures which share of a peak (TFLOP/s of one device) the steps of a process use.

    The products and convolutions of one step are counted as they are executed, by torch's formula for each operator, so
    what gradient checkpointing computes twice counts twice. If the peak is None, nothing is counted.
    """

    def __init__(self, peak: float | None) -> None:
        self.peak = peak
        self.flops: int | None = None  # of a step of this process

    @classmethod
    def of(cls, config: TrainerConfig, device: torch.device) -> "FlopMeter":
        """Returns the meter of a run; compiled steps are not counted, because torch cannot count them."""
        peak = config.peak_tflops or peak_tflops(device, half=config.precision == "bf16")
        return cls(None if config.compile else peak)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Context of a step. The operations of the first one are counted."""
        if self.peak is None or self.flops is not None:
            yield
            return
        with FlopCounterMode(display=False, custom_mapping=_onednn()) as counter:
            yield
        self.flops = counter.get_total_flops()

    def percent(self, seconds: float) -> dict[str, float]:
        """Returns flops_percent for the log, given the seconds of a step; empty if the peak is unknown."""
        if self.peak is None or self.flops is None:
            return {}
        return {"flops_percent": 100 * self.flops / (seconds * self.peak * 1e12)}


def _onednn() -> dict[Any, Any]:
    """Returns the formula of `faceclip.cpu.matmul`'s operator, which torch's counter does not know."""

    def linear(rows: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
        return 2 * math.prod(rows) * weight[0]

    return {torch.ops.mkldnn._linear_pointwise: linear} if has_onednn() else {}


def memory_gib(device: torch.device) -> float:
    """Returns the peak memory of this process in GiB: torch's allocations on a GPU, resident memory elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Context in which CUDA multiplies float32 in TF32 (10 bits of mantissa) or exactly; it affects CUDA only."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def policy(config: TrainerConfig, device: torch.device) -> AbstractContextManager[None]:
    """Context of a run: `float32_products` on CUDA according to `trainer.tf32`; no effect on other devices."""
    tf32 = config.precision == "bf16" if config.tf32 is None else config.tf32
    return float32_products(tf32=tf32) if device.type == "cuda" else nullcontext()


def pinned(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves a batch to page-locked memory if `device` is CUDA, so that the copy to it does not block."""
    if device.type != "cuda":
        return batch
    return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}


def moved(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Returns the batch with its tensors on `device`. The copy does not block the host if the batch is pinned."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
