"""Threads of commands sleep while they wait; the environment may say otherwise, and libraries change nothing."""

import os
import subprocess
import sys

import pytest

from faceclip.cpu.waiting import VARIABLE


def value_after(statement: str, **environment: str) -> str:
    """The variable in a new process after a statement that must not have imported torch before."""
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    check = "import sys, os; assert 'torch' not in sys.modules; "
    code = f"{statement}; {check}print(os.environ.get('{VARIABLE}'))"
    found = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


@pytest.mark.parametrize("package", ["train_encoder", "train_generator", "eval"])
def test_commands_set_it_before_torch_is_there(package):
    assert value_after(f"import {package}") == "PASSIVE"


@pytest.mark.parametrize("module", ["makeup_plugin.__main__", "makeup_plugin.app.__main__"])
def test_the_plugins_commands_set_it_when_they_start(module):
    assert value_after(f"import {module} as command; command.main(['--nothing', '1'])") == "PASSIVE"


def test_the_environment_comes_first():
    assert value_after("import eval", **{VARIABLE: "ACTIVE"}) == "ACTIVE"


@pytest.mark.parametrize("package", ["faceclip", "makeup_plugin"])
def test_libraries_leave_it_alone(package):
    assert value_after(f"import {package}") == "None"
