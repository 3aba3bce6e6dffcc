"""Stopping the demo: what runs as a stage is told by SIGTERM, may save, and does not live on."""

import os
import signal
import sys
import threading
import time

import pytest

from eval.demo import __main__ as demo
from eval.demo.process import Stopped, run_command, stop_on_signals
from eval.demo.stages import Stage

TRAINER = """
import os, signal, subprocess, sys, time
from pathlib import Path
here = Path(sys.argv[1])
def save(*_):
    time.sleep(0.5)
    (here / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
(here / "worker").write_text(str(worker.pid))
(here / "session").write_text(str(os.getsid(0)))
(here / "ready").touch()
time.sleep(30)
"""


@pytest.fixture
def harmless_signals():
    """Without a handler of the demo's, the signals of these tests would end the test run."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def signal_once_there(path, *numbers: int) -> None:
    def send() -> None:
        while not path.exists():
            time.sleep(0.05)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    threading.Thread(target=send, daemon=True).start()


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_demo_lets_the_stage_save_and_leaves_nothing_running(
    monkeypatch, tmp_path, capsys, harmless_signals, number
):
    command = [sys.executable, "-c", TRAINER, str(tmp_path)]
    stage = Stage(name="a", title="a", command=command, expected=1.0, progress=lambda: None)
    monkeypatch.setattr(demo, "make_stages", lambda *_: [stage])
    signal_once_there(tmp_path / "ready", number, signal.SIGINT)  # an impatient second Ctrl-C changes nothing
    assert demo.main(["--out", str(tmp_path / "run")]) == 128 + number
    assert (tmp_path / "saved").exists()
    # A terminal's Ctrl-C goes to the whole session: the stage must not be in the demo's.
    assert int((tmp_path / "session").read_text()) != os.getsid(0)
    deadline = time.monotonic() + 5
    while is_running(int((tmp_path / "worker").read_text())):
        assert time.monotonic() < deadline, "a worker outlived the demo"
        time.sleep(0.05)
    assert "resumes from here" in capsys.readouterr().err


def test_signals_are_as_before_afterwards(harmless_signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped), stop_on_signals():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_status_and_output_are_kept(tmp_path):
    log = tmp_path / "logs" / "a.log"
    assert run_command([sys.executable, "-c", "print('hello'); raise SystemExit(3)"], log, lambda _: None) == 3
    assert log.read_text() == "hello\n"
