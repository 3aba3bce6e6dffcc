"""Threads of commands sleep while they wait on busy machines; the environment comes first, libraries change nothing."""

import os
import subprocess
import sys

import pytest

from faceclip.cpu.waiting import VARIABLE, busy_cores


def value_after(statement: str, **environment: str) -> str:
    """The variable in a new process after a statement that must not have imported torch before."""
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    check = "import sys, os; assert 'torch' not in sys.modules; "
    code = f"{statement}; {check}print(os.environ.get('{VARIABLE}'))"
    found = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


@pytest.fixture
def busy():
    """Another program on one core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield
        process.kill()


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("package", ["train_encoder", "train_generator", "eval"])
def test_commands_set_it_before_torch_is_there(package):
    assert value_after(f"import {package}") == "PASSIVE"


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("module", ["makeup_plugin.__main__", "makeup_plugin.app.__main__"])
def test_the_plugins_commands_set_it_when_they_start(module):
    assert value_after(f"import {module} as command; command.main(['--nothing', '1'])") == "PASSIVE"


@pytest.mark.parametrize(("cores", "found"), [(0.0, "None"), (0.9, "PASSIVE")])
def test_threads_sleep_only_where_cores_are_busy(cores, found):
    assert value_after(f"from faceclip.cpu.waiting import choose_waiting; choose_waiting({cores})") == found


@pytest.mark.usefixtures("busy")
def test_a_busy_core_is_seen():
    assert 0.3 < busy_cores(0.3) <= os.cpu_count() + 0.1


@pytest.mark.usefixtures("busy")
def test_the_environment_comes_first():
    assert value_after("import eval", **{VARIABLE: "ACTIVE"}) == "ACTIVE"


@pytest.mark.parametrize("package", ["faceclip", "makeup_plugin"])
def test_libraries_leave_it_alone(package):
    assert value_after(f"import {package}") == "None"
