"""Fixtures shared by all tests: a small data set of real renders, made once for all test workers."""

import signal
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from faceclip.people.__main__ import main as people


def pytest_configure() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would the processes that tests interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors: more threads than one only cost time and make sums depend on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 identities × 4 portraits at 64 px, written by the documented command; shared by xdist's workers."""
    root = tmp_path_factory.getbasetemp()
    if root.name.startswith("popen-"):  # a worker of pytest-xdist has its own folder below the common one
        root = root.parent
    directory = root / "tiny_dataset"
    with FileLock(str(directory) + ".lock"):
        if not (directory / "dataset.json").exists():
            words = ["--out", str(directory), "--identities", "12", "--images-per-identity", "4", "--size", "64"]
            assert people([*words, "--seed", "7", "--workers", "1", "--splits", "8", "2", "2"]) == 0
    return directory
