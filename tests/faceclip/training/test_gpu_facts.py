"""The check names driver, CUDA, memory and compute capability of a GPU, and what this PyTorch cannot use."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from faceclip.errors import ConfigError
from faceclip.training.gpu_facts import GpuFacts, driver_supports, driver_version, unused_driver
from faceclip.training.rehearsal import machine

FACTS = GpuFacts(
    name="NVIDIA H200",
    memory=140 * 2**30,
    free=100 * 2**30,
    capability=(9, 0),
    driver="550.54.15",
    supports=(12, 4),
    built="12.8",
    architectures=("sm_80", "sm_90"),
)


def test_the_lines_tell_all_of_it() -> None:
    text = "\n".join(FACTS.lines())
    for fact in ("NVIDIA H200", "140.0 GiB", "100.0", "capability 9.0", "bf16 yes", "550.54.15", "12.4", "CUDA 12.8"):
        assert fact in text
    FACTS.check(precision="bf16")
    silent = replace(FACTS, driver=None, supports=None)
    silent.check(precision="bf16")
    assert "unknown" in silent.lines()[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"supports": (11, 8)}, r"^driver: 550\.54\.15 .*11\.8.*12\.8"),
        ({"capability": (7, 5)}, r"^NVIDIA H200 .*7\.5.*sm_80, sm_90"),
        ({"capability": (12, 0)}, r"12\.0.*sm_80, sm_90"),
        ({"capability": (7, 5), "architectures": ("sm_75",)}, r"^trainer\.precision=bf16: NVIDIA H200 "),
    ],
)
def test_what_would_not_run_is_refused_with_its_name(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(FACTS, **changes).check(precision="bf16")


@pytest.mark.parametrize(
    ("capability", "architectures"),
    [((8, 9), ("sm_80", "sm_86")), ((12, 0), ("sm_90", "compute_90")), ((9, 0), ("sm_80", "sm_90a")), ((8, 0), ())],
)
def test_kernels_of_the_generation_and_ptx_run(capability, architectures) -> None:
    replace(FACTS, capability=capability, architectures=architectures).check(precision="fp32")


def test_the_drivers_version_is_read_from_its_entry(tmp_path: Path) -> None:
    entry = tmp_path / "version"
    assert driver_version(entry) is None and driver_supports("libno-such-driver.so") is None
    entry.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35.03  Release Build\nGCC version: 12"
    )
    assert driver_version(entry) == "560.35.03"
    entry.write_text("nothing of the kind\n")
    assert driver_version(entry) is None


def test_a_driver_without_a_gpu_is_told() -> None:
    assert unused_driver(None, "12.8") is None
    said = unused_driver("550.54.15", None)
    assert said is not None and "550.54.15" in said and "CUDA_VISIBLE_DEVICES" in said


def test_the_check_reads_them_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of torch's functions, as there is no GPU here; the driver is that of this machine, if any."""
    answers = {
        "mem_get_info": (100 * 2**30, 140 * 2**30),
        "get_device_name": "NVIDIA H200",
        "get_device_capability": (9, 0),
        "get_arch_list": ["sm_90"],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch.version, "cuda", "11.8")
    text = "\n".join(machine(torch.device("cuda"), "bf16"))
    assert "NVIDIA H200, 140.0 GiB of which 100.0" in text and "capability 9.0" in text and "CUDA 11.8" in text
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    with pytest.raises(ConfigError, match=r"trainer\.precision=bf16"):
        machine(torch.device("cuda"), "bf16")
