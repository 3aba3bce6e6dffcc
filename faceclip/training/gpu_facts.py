"""What a GPU and its driver say of themselves, and whether this PyTorch can use them.

Read without nvidia-smi, which containers often lack: by torch, by the driver's library and by its entry in /proc.
"""

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from faceclip.errors import ConfigError

DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """driver: its version; supports: newest CUDA, as (major, minor), that it runs; None: it does not tell. built: the
    CUDA of this PyTorch; architectures: those that its kernels are compiled for, such as sm_90 and compute_90. memory
    and free in bytes."""

    name: str
    memory: int
    free: int
    capability: tuple[int, int]
    driver: str | None
    supports: tuple[int, int] | None
    built: str
    architectures: tuple[str, ...]

    @classmethod
    def of(cls, device: torch.device) -> "GpuFacts":
        """Those of a CUDA device that torch has found."""
        free, memory = torch.cuda.mem_get_info(device)
        return cls(
            name=torch.cuda.get_device_name(device),
            memory=memory,
            free=free,
            capability=torch.cuda.get_device_capability(device),
            driver=driver_version(),
            supports=driver_supports(),
            built=torch.version.cuda or "",
            architectures=tuple(torch.cuda.get_arch_list()),
        )

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16; `torch.cuda.is_bf16_supported` also counts an emulation that is slower than
        float32."""
        return self.capability >= (8, 0)

    def lines(self) -> list[str]:
        """Two lines for the reader."""
        supports = f", which runs CUDA up to {self.supports[0]}.{self.supports[1]}" if self.supports else ""
        major, minor = self.capability
        return [
            f"GPU: {self.name}, {self.memory / 2**30:.1f} GiB of which {self.free / 2**30:.1f} are free, "
            f"compute capability {major}.{minor}, bf16 {'yes' if self.bf16 else 'no'}",
            f"driver: {self.driver or 'version unknown'}{supports}; this PyTorch is built for CUDA {self.built}",
        ]

    def check(self, *, precision: str) -> None:
        """Raises ConfigError, with the remedy, where kernels would not run, and for bf16 where there is none."""
        if self.supports and self.built and int(self.built.split(".")[0]) > self.supports[0]:
            raise ConfigError(
                f"driver: {self.driver or 'this one'} runs CUDA up to {self.supports[0]}.{self.supports[1]}, and this "
                f"PyTorch is built for CUDA {self.built}: renew the driver, or install a PyTorch for its CUDA"
            )
        if self.architectures and not _runs(self.capability, self.architectures):
            raise ConfigError(
                f"{self.name} has compute capability {self.capability[0]}.{self.capability[1]}, and this PyTorch has "
                f"kernels for {', '.join(self.architectures)}: install one that has them"
            )
        if precision == "bf16" and not self.bf16:
            raise ConfigError(f"trainer.precision=bf16: {self.name} does not compute in bf16: set fp32")


def _runs(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Kernels run on their own generation from their number on; PTX (compute_…) is compiled for anything newer."""
    for name in architectures:
        kind, _, number = name.partition("_")
        if not (digits := re.match(r"\d+", number)):
            continue
        major, minor = divmod(int(digits[0]), 10)
        if kind == "compute" and (major, minor) <= capability:
            return True
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
    return False


def driver_version(file: Path = DRIVER_FILE) -> str | None:
    """Version of NVIDIA's driver, such as 550.54.15; None where none is loaded or its entry is not readable."""
    try:
        found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", file.read_text())
    except OSError:
        return None
    return found[0] if found else None


def driver_supports(library: str = "libcuda.so.1") -> tuple[int, int] | None:
    """Newest CUDA that the driver runs; None where its library is not there."""
    try:
        driver, version = ctypes.CDLL(library), ctypes.c_int()
    except OSError:
        return None
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def unused_driver(driver: str | None, built: str | None) -> str | None:
    """What to say on a machine where torch has found no GPU: None where there is no driver either."""
    if driver is None:
        return None
    kind = f"is built for CUDA {built}" if built else "is built without CUDA"
    return (
        f"NVIDIA's driver {driver} is loaded, and this PyTorch, which {kind}, finds no GPU: check "
        "CUDA_VISIBLE_DEVICES, the driver's age, and that the container is given the GPU"
    )
