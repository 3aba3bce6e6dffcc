"""Processes of `python -m MODULE` or `python -c CODE` that find the libraries imported: forks of one server.

Starting the interpreter and importing torch, diffusers and the rest costs each process several seconds, and the suite
starts dozens of them. The server imports these once and forks for every request. A fork is a process of its own, with
its own session, environment, streams and exit status: tests send signals to it, kill it and read what it wrote.
Tests of what an import does start an interpreter of their own instead.
"""

import array
import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Sequence
from pathlib import Path

# Third-party libraries, and the project's commands that tests start. Importing them must start no thread of
# Python's, which a fork would lack.
MODULES = (
    "torch",
    "datasets",
    "peft",
    "train_encoder.task",
    "train_encoder.text_states",
    "train_generator.task",
    "train_generator.loading",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.loaders",
)


class Process:
    """A started process with the part of `subprocess.Popen`'s interface that tests use.

    Variables that libraries read when they are imported, such as HF_HOME and OMP_NUM_THREADS, come from the server.
    """

    def __init__(self, words: Sequence[str], environment: dict[str, str], output: Path | None = None) -> None:
        """Starts `python WORDS` in this folder; both streams go to the file `output` or to a temporary one."""
        self._output = tempfile.TemporaryFile() if output is None else open(output, "w+b")  # noqa: SIM115
        self.returncode: int | None = None
        self._status, theirs = os.pipe()
        request = {"words": list(words), "environment": environment, "folder": os.getcwd()}
        try:
            _send(_server()[0], request, [theirs, self._output.fileno()])
        finally:
            os.close(theirs)
        self.pid = int(self._read_line())

    def poll(self) -> int | None:
        """The exit status, minus the number of the signal that ended it, or None while the process runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = int(self._read_line())
            os.close(self._status)
            self._written = self.output()
            self._output.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Waits for the end and returns all that was written."""
        self.wait(timeout)
        return self.output(), None

    def output(self) -> str:
        """What the process has written until now."""
        if self._output.closed:
            return self._written
        file = self._output.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode()  # the process writes where its own position is

    def send_signal(self, number: int) -> None:
        """Sends a signal to the process, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _read_line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(self._status, 1)
            assert piece, "the server of warm processes has ended"
            line += piece
        return line.decode()


@functools.cache
def _server() -> tuple[socket.socket, subprocess.Popen]:
    """The connection to this process' server, and the server; both end with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    atexit.register(_end, ours, server)
    return ours, server


def _end(connection: socket.socket, server: subprocess.Popen) -> None:
    connection.close()
    server.kill()
    server.wait()


def _send(connection: socket.socket, request: dict, files: list[int]) -> None:
    """One packet of JSON that carries open files."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
    connection.sendmsg([json.dumps(request).encode()], [rights])


def serve(connection: socket.socket) -> dict | None:
    """Answers requests until the connection ends: None then; in a fork, the request that it has to run."""
    while True:
        packet, files, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if not packet:
            return None
        shepherd = os.fork()
        if shepherd:
            for file in files:
                os.close(file)
            continue
        # The shepherd forks the process itself and waits for it, so that the server may wait for the next request.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.close()
        status, output = files
        child = os.fork()
        if child == 0:
            os.setsid()
            os.write(status, b"%d\n" % os.getpid())
            os.close(status)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            return json.loads(packet)
        _, ended = os.waitpid(child, 0)
        with contextlib.suppress(BrokenPipeError):  # the test has ended
            os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended))
        os._exit(0)


def run(words: list[str], environment: dict[str, str], folder: str) -> None:
    """`python WORDS` in this process."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:0] = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place not in sys.path]
    option, what, *arguments = words
    if option == "-m":
        sys.argv[1:] = arguments
        sys.modules.pop(what, None)  # it may be imported already, and is to run as the main module
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert option == "-c", option
        sys.argv = ["-c", *arguments]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))


def main() -> None:
    """The server, and every process that it forks."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    for name in MODULES:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for shepherds
    request = serve(connection)
    if request is None:
        return
    status = 1
    try:
        run(**request)
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if status and not isinstance(leaving.code, int):
            print(leaving.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # waits for its threads, as the interpreter's end does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        # Libraries in C would wait at their exit for threads that only the server has.
        os._exit(status)


if __name__ == "__main__":
    main()
