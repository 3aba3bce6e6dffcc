"""Several ranks of a command on one machine, over gloo on the loopback interface, which can never outlive a test."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.warm import Process

LIMIT = 200  # seconds after which all ranks are killed


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def environment(**changes: str) -> dict[str, str]:
    """This process' environment with one thread per rank, without anything of an enclosing launcher."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_", "TORCHELASTIC_"))}
    local = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONUNBUFFERED": "1"}
    return inherited | local | changes


def run_ranks(directory: Path, *command: str, ranks: int = 2, limit: float = LIMIT, **changes: str) -> tuple[int, str]:
    """Runs `python COMMAND` as ranks 0 … ranks − 1; returns the worst exit status and the output of all.

    The first rank that fails ends the others, as a launcher would. Output goes below `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    processes = []
    try:
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
            surroundings = environment(**meeting, **own, **changes)
            processes.append(Process(command, surroundings, directory / f"rank{rank}.txt"))
        wait(processes, limit)
    finally:
        end(processes)
    text = "\n".join(path.read_text() for path in sorted(directory.glob("rank*.txt")))
    return max((abs(process.returncode) for process in processes), default=0), text


def run_launcher(directory: Path, *command: str, limit: float = LIMIT, **changes: str) -> tuple[int, str]:
    """Runs one launcher command (`python -m accelerate…`), which starts the ranks itself, under the same limit."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "launcher.txt", "w") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment(**changes),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait([process], limit)
    finally:
        end([process])
    return abs(process.returncode), (directory / "launcher.txt").read_text()


def wait(processes: Sequence[Process | subprocess.Popen], limit: float) -> None:
    """Until all have ended, one has failed, or `limit` seconds are over."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        states = [process.poll() for process in processes]
        if all(state == 0 for state in states) or any(state not in (None, 0) for state in states):
            return
        time.sleep(0.05)


def end(processes: Sequence[Process | subprocess.Popen]) -> None:
    """Kills the whole process group of each that still runs, and waits for it."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
